"""One layer's tensors in a file of another program, in the shapes that PEFT keeps them in, and their scale.

The programs write a projection's factors as matrices or as 1 × 1 convolutions, LyCORIS a convolution's LoRA as three
factors, of which the inner two multiply to one, and ``alpha`` beside them: s = alpha ÷ rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_peft.formats.low_rank import LOKR, LORA, MAGNITUDE, PARTS, NoFormError
from peft_kernels.adapter_formats import ALPHA, DORA_SCALE, DOWN, MID, UP


def as_peft_has_them(
    kind: str, layer: str, parts: Mapping[str, Tensor], base: nn.Module
) -> tuple[dict[str, Tensor], float]:
    """The parts by PEFT's names, and the scale.

    Args:
        kind: a key of `PARTS`.
        layer: the layer's name, for messages.
        parts: its tensors by part as `recognise` tells them.
        base: the layer.

    Raises:
        NoFormError: a part is missing or misshapen, or PEFT has no place for one.
    """
    parts = dict(parts)
    _check_shapes(layer, parts)
    alpha = float(parts.pop(ALPHA)) if ALPHA in parts else None
    if kind == LORA:
        made = _lora(layer, parts, base)
        rank = made["lora_A"].shape[0]
    else:
        _require(layer, parts, PARTS[kind])
        if kind == LOKR:
            _check_factors(layer, parts)
        made = parts
        products = ("lokr_w2_b", "lokr_w1_b") if kind == LOKR else ("hada_w1_b", "hada_w2_b")
        ranks = {parts[name].shape[0] for name in products if name in parts}
        if len(ranks) > 1:
            raise NoFormError(f"{layer!r} has factors of ranks {' and '.join(map(str, sorted(ranks)))}, PEFT one rank")
        rank = ranks.pop() if ranks else None
    # Without products LoKr has no rank to divide by: the programs leave alpha out. Where it is 0 the rank is meant.
    return made, alpha / rank if alpha and rank else 1.0


def _lora(layer: str, parts: Mapping[str, Tensor], base: nn.Module) -> dict[str, Tensor]:
    _require(layer, parts, (DOWN, UP, MID, DORA_SCALE, MAGNITUDE), (DOWN, UP))
    weight: Any = base.weight
    out, *inner = weight.shape
    down, up = parts[DOWN], parts[UP]
    rank = up.shape[1]
    if MID in parts:
        down = torch.einsum("rs...,si->ri...", parts[MID], down.flatten(1))
    wanted = (rank, *inner), (out, rank, *[1] * (len(inner) - 1))
    for name, tensor, shape in (("lora_down", down, wanted[0]), ("lora_up", up, wanted[1])):
        if tensor.numel() != torch.Size(shape).numel():
            raise NoFormError(f"{layer!r} has {name} of shape {tuple(tensor.shape)}; {shape} is expected in this model")
    made = {"lora_A": down.reshape(wanted[0]), "lora_B": up.reshape(wanted[1])}
    magnitude = parts.get(MAGNITUDE, parts.get(DORA_SCALE))
    if magnitude is not None:
        if magnitude.numel() != out or (DORA_SCALE in parts and magnitude.shape[0] != out):
            raise NoFormError(
                f"{layer!r} has magnitudes of shape {tuple(magnitude.shape)}: one for every input, where PEFT's "
                f"DoRA has one for every output, of which there are {out}"
            )
        made[MAGNITUDE] = (
            magnitude.reshape(out) if len(inner) == 1 else magnitude.reshape(1, out, *[1] * len(inner[1:]))
        )
    return made


def _check_shapes(layer: str, parts: Mapping[str, Tensor]) -> None:
    for name, tensor in parts.items():
        least = 1 if name in (DORA_SCALE, MAGNITUDE) else 2
        if tensor.numel() != 1 if name == ALPHA else tensor.ndim < least:
            wanted = "one number" if name == ALPHA else f"{least} dimensions at least"
            raise NoFormError(f"{layer!r} has {_told(name)} of shape {tuple(tensor.shape)}; expected {wanted}")
    if {MID, DOWN} <= set(parts) and parts[MID].shape[1] != parts[DOWN].shape[0]:
        shapes = " and ".join(f"{_told(name)} of shape {tuple(parts[name].shape)}" for name in (MID, DOWN))
        raise NoFormError(f"{layer!r} has {shapes}, which cannot be multiplied")


def _check_factors(layer: str, parts: Mapping[str, Tensor]) -> None:
    for factor in ("lokr_w1", "lokr_w2"):
        halves = [f"{factor}_{end}" in parts for end in "ab"]
        if halves != [factor not in parts] * 2:
            found = ", ".join(sorted(name for name in parts if name.startswith(factor))) or "none of them"
            raise NoFormError(f"{layer!r} needs {factor}, or {factor}_a and {factor}_b; found {found}")


def _told(part: str) -> str:
    return f"lora_{part}" if part in (DOWN, UP, MID) else part


def _require(layer: str, parts: Mapping[str, Tensor], known: tuple[str, ...], needed: tuple[str, ...] = ()) -> None:
    strange = sorted(set(parts) - set(known))
    if strange:
        raise NoFormError(f"PEFT has no place for {strange[0]!r} of {layer!r}")
    missing = [part for part in needed if part not in parts]
    if missing:
        raise NoFormError(f"{layer!r} has no lora_{missing[0]}")
