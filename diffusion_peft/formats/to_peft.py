"""Low-rank changes as PEFT's own adapter: the configuration under which PEFT makes tensors of these very shapes."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, TypeVar

import torch
from diffusers.utils.peft_utils import _create_lokr_config
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig
from torch import Tensor, nn

from diffusion_peft.formats.low_rank import LOHA, LORA, MAGNITUDE, LowRank, NoFormError
from peft_kernels.adapter_formats import PEFT_ROOT
from peft_kernels.targets import compress, plain_modules

Value = TypeVar("Value", int, float)


def to_peft(found: LowRank, model: nn.Module) -> tuple[PeftConfig, dict[str, Tensor]]:
    """Configuration and tensors as PEFT saves them.

    Args:
        found: changes of layers that ``model`` has.
        model: the base model, on the meta device if need be.

    Raises:
        NoFormError: PEFT has no such layers; the reason is told.
    """
    bases = {name: module for name, module in plain_modules(model) if name in found.layers}
    common = {"target_modules": compress(model, list(bases)), "inference_mode": True}
    if found.kind == LORA:
        config = _lora(found, common)
    elif found.kind == LOHA:
        tucker = any("hada_t1" in parts for parts in found.layers.values())
        config = LoHaConfig(use_effective_conv2d=tucker, **_sizes(found, "alpha"), **common)
    else:
        config = _lokr(found, bases, common)
    ends = {"lora_A": ".weight", "lora_B": ".weight"}
    return config, {
        f"{PEFT_ROOT}{layer}.{part}{ends.get(part, '')}": tensor
        for layer in bases
        for part, tensor in found.layers[layer].items()
    }


def _lora(found: LowRank, common: dict[str, Any]) -> LoraConfig:
    without = [layer for layer, parts in found.layers.items() if MAGNITUDE not in parts]
    if found.dora and without:
        raise NoFormError(f"PEFT's DoRA has a magnitude in every layer, and {without[0]!r} has none")
    return LoraConfig(use_dora=found.dora, **_sizes(found, "lora_alpha"), **common)


def _sizes(found: LowRank, alpha: str, ranks: dict[str, int] | None = None) -> dict[str, Any]:
    ranks = ranks or {layer: found.rank(layer) or 1 for layer in found.layers}
    r, rank_pattern = _pattern(ranks)
    usual, alpha_pattern = _pattern({layer: _whole(found.scales[layer] * rank) for layer, rank in ranks.items()})
    return {"r": r, "rank_pattern": rank_pattern, alpha: usual, "alpha_pattern": alpha_pattern}


def _pattern(values: dict[str, Value]) -> tuple[Value, dict[str, Value]]:
    """The commonest value, and the others by patterns of names."""
    usual = Counter(values.values()).most_common(1)[0][0]
    return usual, {f"^{re.escape(layer)}": value for layer, value in values.items() if value != usual}


def _whole(value: float) -> float:
    near = round(value)
    return near if abs(value - near) < 1e-9 * max(1, abs(value)) else value


def _lokr(found: LowRank, bases: dict[str, nn.Module], common: dict[str, Any]) -> LoKrConfig:
    flat: dict[str, Tensor] = {}
    for layer, parts in found.layers.items():
        for part in parts:
            flat[f"{layer}.{part}"] = torch.empty(_matrix(part, parts, bases[layer]), device="meta")
    try:  # diffusers finds the factorisation and the ranks under which PEFT makes these shapes, of linear layers
        shapes = _create_lokr_config({key: t for key, t in flat.items() if t.numel()}, None)
    except ValueError:
        raise NoFormError("PEFT's LoKr splits the layers' sizes into other factors than the file does") from None
    patterns: dict[str, int] = shapes.rank_pattern or {}
    return LoKrConfig(
        decompose_both=shapes.decompose_both,
        decompose_factor=shapes.decompose_factor,
        use_effective_conv2d=any("lokr_t2" in parts for parts in found.layers.values()),
        **_sizes(found, "alpha", {layer: patterns.get(layer, shapes.r) for layer in found.layers}),
        **common,
    )


def _matrix(part: str, parts: dict[str, Tensor], base: nn.Module) -> tuple[int, ...]:
    """The shape that the part would have on a linear layer."""
    shape, kernel = tuple(parts[part].shape), getattr(base, "kernel_size", (1,))
    if part == "lokr_t2":
        return (0,)
    if part == "lokr_w2_a" and "lokr_t2" in parts:
        return shape[::-1]
    if part == "lokr_w2_b" and "lokr_t2" not in parts:
        return (shape[0], shape[1] // torch.Size(kernel).numel())
    return shape[:2]
