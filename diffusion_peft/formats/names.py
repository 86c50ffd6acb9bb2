"""Names of a denoiser's layers in other programs, by diffusers' own converters wherever they are no plain spelling.

kohya's and LyCORIS's files write a layer's name with underscores. For SDXL sd-scripts counts blocks as Stability AI's
code does (``input_blocks_4_1`` is ``down_blocks.1.attentions.0``); diffusers reads these names, and the way back is
found by asking its reader for every such name there can be.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from diffusers.loaders.lora_conversion_utils import _convert_unet_lora_key, _maybe_map_sgm_blocks_to_diffusers
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from torch import nn

from peft_kernels.targets import plain_modules

UNET, TRANSFORMER = "unet", "transformer"
# Layers of a residual block in Stability AI's code.
_RESNET = ("in_layers_2", "out_layers_3", "emb_layers_1", "skip_connection")
_SINGLE = ("input_blocks_0_0", "out_2", "time_embed_0", "time_embed_2", "label_emb_0_0", "label_emb_0_2")


def component(model: nn.Module) -> str:
    """What a pipeline calls the model: ``unet`` or ``transformer``."""
    return UNET if type(model).__name__.startswith("UNet") else TRANSFORMER


def flat(name: str) -> str:
    """A layer's name with underscores."""
    return name.replace(".", "_")


def flat_names(model: nn.Module) -> dict[str, str]:
    """The names of all layers that have a weight, by their names with underscores."""
    return {flat(name): name for name, module in plain_modules(model) if name and hasattr(module, "weight")}


def sgm_names(model: nn.Module) -> dict[str, str]:
    """The names of a UNet's layers by those of Stability AI's code, with underscores; empty for other models."""
    config: Any = getattr(model, "config", None)
    layers = getattr(config, "layers_per_block", None)
    if component(model) != UNET or not isinstance(layers, int) or not hasattr(config, "block_out_channels"):
        return {}
    known = flat_names(model)
    found = {}
    for name in _candidates(known, len(config.block_out_channels), layers + 1):
        # One name at a time: diffusers takes input_blocks_10 for a part of input_blocks_1.
        key = next(iter(_maybe_map_sgm_blocks_to_diffusers({f"lora_unet_{name}.lora_down.weight": None}, config)))
        layer = next(iter(convert_unet_state_dict_to_peft({_convert_unet_lora_key(key): None})))
        path = known.get(flat(re.sub(r"\.lora(_A|\.down)\.weight$", "", layer)))
        if path is not None:
            found.setdefault(name, path)
    return found


def _candidates(known: dict[str, str], blocks: int, each: int) -> Iterator[str]:
    attention = sorted({hit[1] for name in known if (hit := re.search(r"_attentions_\d+_(.+)", name))})
    yield from _SINGLE
    yield from (f"middle_block_{i}_{tail}" for i in (0, 2) for tail in _RESNET)
    yield from (f"middle_block_1_{tail}" for tail in attention)
    for i in range(blocks * each):
        for side in ("input", "output"):
            yield from (f"{side}_blocks_{i}_0_{tail}" for tail in _RESNET)
            yield from (f"{side}_blocks_{i}_1_{tail}" for tail in attention)
    for i in range(1, blocks + 1):
        yield from (f"input_blocks_{i * each}_0_op", f"output_blocks_{i * each - 1}_2_conv")


def is_sdxl(model: nn.Module) -> bool:
    """Whether sd-scripts trains the model in Stability AI's code: SDXL's UNet."""
    return getattr(getattr(model, "config", None), "addition_embed_type", None) == "text_time"
