"""Flux in sd-scripts' names: its authors' code has q, k and v in one matrix, and in single blocks part of the MLP too.

Which layers of diffusers' a name stands for is found by asking diffusers' own reader. LoRA of the parts is LoRA of the
whole with a block structure, ``[B₁ 0; 0 B₂] [A₁; A₂]``; LoRA of the whole is LoRA of a part with its rows of B.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from torch import Tensor, nn

from diffusion_peft.formats.low_rank import LORA, LowRank, NoFormError

_DOUBLE = ("attn_qkv", "attn_proj", "mlp_0", "mlp_2", "mod_lin")
_BLOCKS = {
    "double_blocks": [f"{side}_{layer}" for side in ("img", "txt") for layer in _DOUBLE],
    "single_blocks": ["linear1", "linear2", "modulation_lin"],
}
_FUSED = re.compile(r"lora_unet_((double|single)_blocks)_(\d+)_(\w+)")
_ROWS = 21504  # of the largest fused matrix, which diffusers' reader counts


@cache
def _of_first_blocks() -> dict[tuple[str, str], list[str]]:
    """Diffusers' layers of each kind of block's first, by sd-scripts' names."""
    found = {}
    for kind, names in _BLOCKS.items():
        for name in names:
            key = f"lora_unet_{kind}_0_{name}"
            probe = {f"{key}.lora_down.weight": torch.zeros(1, 1), f"{key}.lora_up.weight": torch.zeros(_ROWS, 1)}
            made = _convert_kohya_flux_lora_to_diffusers(probe)
            ends = (key for key in made if key.endswith(".lora_A.weight"))
            found[kind, name] = [key.removeprefix("transformer.").removesuffix(".lora_A.weight") for key in ends]
    return found


def is_flux(model: nn.Module) -> bool:
    """Whether it is FLUX.1's transformer."""
    return type(model).__name__ == "FluxTransformer2DModel"


def layers_of(name: str) -> list[str]:
    """The layers that sd-scripts' name stands for, in the order of their rows; empty where it is none."""
    hit = _FUSED.fullmatch(name)
    first = _of_first_blocks().get((hit[1], hit[4]), []) if hit else []
    return [layer.replace(".0.", f".{hit[3]}.", 1) for layer in first] if hit else []


def fuse(found: LowRank, model: nn.Module) -> LowRank:
    """The changes by sd-scripts' names.

    Raises:
        NoFormError: it is not LoRA, or sd-scripts has no name for a layer.
    """
    if found.kind != LORA or found.dora:
        raise NoFormError("sd-scripts has q, k and v in one matrix, which LoRA's factors alone can make up")
    made, left = LowRank(LORA, {}, {}), dict(found.layers)
    config: Any = model.config
    sizes = {"double_blocks": config.num_layers, "single_blocks": config.num_single_layers}
    for kind, name in _of_first_blocks():
        for i in range(sizes[kind]):
            whole = f"lora_unet_{kind}_{i}_{name}"
            group = layers_of(whole)
            parts = {layer: left.pop(layer) for layer in group if layer in left}
            if parts:
                made.layers[whole], made.scales[whole] = _fused(group, parts, found.scales, model)
    if left:
        raise NoFormError(f"sd-scripts has no name for {next(iter(left))!r}")
    return made


def _fused(
    group: list[str], parts: dict[str, dict[str, Tensor]], scales: dict[str, float], model: nn.Module
) -> tuple[dict[str, Tensor], float]:
    scale = scales[next(iter(parts))]
    if len(group) == 1:
        return parts[group[0]], scale
    down = torch.cat([part["lora_A"] for part in parts.values()])
    rows = [model.get_parameter(f"{layer}.weight").shape[0] for layer in group]
    up, row, column = down.new_zeros(sum(rows), len(down)), 0, 0
    for layer, count in zip(group, rows, strict=True):
        if layer in parts:
            B = parts[layer]["lora_B"]
            up[row : row + count, column : column + B.shape[1]] = scales[layer] / scale * B
            column += B.shape[1]
        row += count
    return {"lora_A": down, "lora_B": up}, scale


def split(tensors: dict[str, Tensor], bases: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """A file's tensors with sd-scripts' fused layers taken apart, under diffusers' names.

    Columns of B that are zero in a part are left out, and parts that have no others.

    Args:
        tensors: by their keys in the file.
        bases: the model's layers by name.
    """
    made = dict(tensors)
    for key in [key for key in tensors if key.endswith(".lora_up.weight")]:
        whole = key.removesuffix(".lora_up.weight")
        group, down = layers_of(whole), f"{whole}.lora_down.weight"
        rows, up = [len(bases[layer].weight) for layer in group if layer in bases], tensors[key]  # type: ignore[arg-type]
        if len(group) < 2 or down not in tensors or len(up) != sum(rows):
            continue
        scale = float(made.pop(f"{whole}.alpha", torch.tensor(up.shape[1]))) / up.shape[1]
        del made[key], made[down]
        for layer, B in zip(group, up.split(rows), strict=True):
            used = B.abs().sum(0) > 0
            if used.any():
                made[f"transformer.{layer}.lora_down.weight"] = tensors[down][used]
                made[f"transformer.{layer}.lora_up.weight"] = B[:, used]
                made[f"transformer.{layer}.alpha"] = torch.tensor(scale * int(used.sum()))
    return made
