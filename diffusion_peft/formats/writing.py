"""Write a low-rank adapter as diffusers, kohya's programs or ComfyUI read it, where that is exact.

``diffusers``  PEFT's names after ``unet.`` or ``transformer.``, the configuration in the header, as diffusers saves.
``kohya``      sd-scripts' and LyCORIS's names with an ``alpha`` a layer; SDXL's blocks counted as sd-scripts does, and
               Flux's layers fused.
``comfy``      the same for UNets; for transformers diffusers' names, with the scale written into the factors, so that
               no program can pass over it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import PeftConfig
from torch import Tensor, nn

from diffusion_peft.formats.flux import fuse, is_flux
from diffusion_peft.formats.low_rank import LOHA, LOKR, LORA, MAGNITUDE, LowRank, NoFormError, from_peft
from diffusion_peft.formats.names import UNET, component, flat, is_sdxl, sgm_names
from diffusion_peft.formats.to_peft import to_peft
from peft_kernels.adapter_formats import PEFT_ROOT

Written = tuple[dict[str, Tensor], dict[str, str]]
_KOHYA_PARTS = {"lora_A": "lora_down.weight", "lora_B": "lora_up.weight", MAGNITUDE: "dora_scale"}
# Transformers whose layers ComfyUI knows by diffusers' names.
_COMFY = ("SD3Transformer2DModel", "FluxTransformer2DModel", "PixArtTransformer2DModel")


def written(config: PeftConfig, tensors: Mapping[str, Tensor], model: nn.Module, to: str) -> Written:
    """Tensors and header of the file.

    Args:
        config: the configuration of an adapter of PEFT's.
        tensors: its tensors by their keys in the file.
        model: the base model, on the meta device if need be.
        to: a key of `WRITERS`.

    Raises:
        NoFormError: there is no exact form; the reason is told.
    """
    made, header = WRITERS[to](from_peft(config, tensors), model)
    return {key: tensor.contiguous() for key, tensor in made.items()}, {"format": "pt", **header}


def _diffusers(found: LowRank, model: nn.Module) -> Written:
    if not hasattr(model, "load_lora_adapter"):
        raise NoFormError(f"diffusers' {type(model).__name__} loads no adapters")
    if found.kind == LOHA:
        raise NoFormError("diffusers reads LoRA and LoKr alone")
    config, tensors = to_peft(found, model)
    name = component(model)
    header = {f"{name}.{key}": value for key, value in config.to_dict().items() if value is not None}
    header = json.dumps(header, indent=2, sort_keys=True, default=sorted)
    return {f"{name}.{key.removeprefix(PEFT_ROOT)}": t for key, t in tensors.items()}, {
        LORA_ADAPTER_METADATA_KEY: header
    }


def _kohya(found: LowRank, model: nn.Module) -> Written:
    if is_flux(model):
        return _with_alphas(fuse(found, model), model, str)
    if component(model) != UNET:
        raise NoFormError(f"of {type(model).__name__} sd-scripts names the layers as its authors' code does, if at all")
    return _unet(found, model)


def _comfy(found: LowRank, model: nn.Module) -> Written:
    if found.dora:
        raise NoFormError("ComfyUI divides a row by the norm of the plain weight, where DoRA takes that of the adapted")
    if component(model) == UNET:
        return _unet(found, model)
    if type(model).__name__ not in _COMFY:
        raise NoFormError(f"ComfyUI has no names for the layers of {type(model).__name__}")
    if found.kind != LORA:
        return _with_alphas(found, model, lambda layer: f"transformer.{layer}")
    made = {}
    for layer, parts in found.layers.items():
        made[f"transformer.{layer}.lora_A.weight"] = parts["lora_A"]
        made[f"transformer.{layer}.lora_B.weight"] = found.scales[layer] * parts["lora_B"]
    return made, {}


def _unet(found: LowRank, model: nn.Module) -> Written:
    names = {path: name for name, path in sgm_names(model).items()} if is_sdxl(model) else {}
    lost = [layer for layer in found.layers if names and layer not in names]
    if lost:
        raise NoFormError(f"sd-scripts has no name for {lost[0]!r}")
    return _with_alphas(found, model, lambda layer: f"lora_unet_{names.get(layer, flat(layer))}")


def _with_alphas(found: LowRank, model: nn.Module, name: Callable[[str], str]) -> Written:
    made: dict[str, Tensor] = {}
    alphas = {layer: found.scales[layer] * (found.rank(layer) or 1) for layer in found.layers}
    usual = Counter(alphas.values()).most_common(1)[0][0]
    for layer, parts in found.layers.items():
        alpha = alphas[layer]
        if found.rank(layer) is None:  # both factors of LoKr whole: the programs pass over alpha
            parts, alpha = {**parts, "lokr_w1": alpha * parts["lokr_w1"]}, 1.0
        elif found.kind == LORA and alpha != usual:  # diffusers mixes up alphas that differ in attention layers
            parts, alpha = {**parts, "lora_B": alpha / usual * parts["lora_B"]}, usual
        for part, tensor in parts.items():
            if part == MAGNITUDE:  # [out, 1, ...]: one a row, by which LyCORIS knows rows from columns
                tensor = tensor.reshape(-1, *[1] * (model.get_parameter(f"{layer}.weight").ndim - 1))
            made[f"{name(layer)}.{_KOHYA_PARTS.get(part, part)}"] = tensor
        made[f"{name(layer)}.alpha"] = torch.tensor(float(alpha))
    return made, _kohya_header(found, usual)


def _kohya_header(found: LowRank, alpha: float) -> dict[str, str]:
    ranks = Counter(found.rank(layer) or 1 for layer in found.layers)
    header = {"ss_network_dim": str(ranks.most_common(1)[0][0]), "ss_network_alpha": f"{alpha:g}"}
    if found.kind == LORA and not found.dora:
        return {"ss_network_module": "networks.lora", **header}
    arguments = {"algo": {LORA: "locon", LOHA: "loha", LOKR: "lokr"}[found.kind]}
    if found.dora:
        arguments |= {"dora_wd": "True", "wd_on_output": "True"}
    return {"ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps(arguments), **header}


WRITERS: dict[str, Callable[[LowRank, nn.Module], Written]] = {
    "diffusers": _diffusers,
    "kohya": _kohya,
    "comfy": _comfy,
}
