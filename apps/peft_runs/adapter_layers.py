"""The layers of an adapter's file: size, rank, norm, and how much a low-rank adapter changes its weight."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from peft import PeftConfig
from safetensors import safe_open
from torch import Tensor

from peft_kernels.adapter_files import AdapterError
from peft_kernels.adapter_formats import ALPHA, DOWN, RANK_PARTS, UP, Recognised


@dataclass
class LayerReport:
    """One adapted layer, or one module trained in full.

    Attributes:
        name: its name in the file, without what stands before all names.
        parameters: how many numbers, indices left out.
        rank: of a low-rank change.
        norm: Frobenius norm of the adapter's tensors together; ``None`` where they hold NaN or infinity.
        change: Frobenius norm of the low-rank change of the weight, where the file tells it.
    """

    name: str
    parameters: int
    rank: int | None
    norm: float | None
    change: float | None


class LowRank(NamedTuple):
    """A change ``scale · B A`` of a weight; ``A [r, in]`` and ``B [out, r]`` in float64."""

    scale: float
    A: Tensor
    B: Tensor


def read_layers(weights: Path, found: Recognised, config: PeftConfig | None) -> tuple[list[LayerReport], list[float]]:
    """A report on every layer, and the alphas that were found; tensors are read a layer at a time."""
    alphas: set[float] = {float(a) for a in (getattr(config, "lora_alpha", None),) if a is not None}
    reports = []
    for name, tensors, alpha in each_layer(weights, found):
        alphas |= set() if alpha is None else {alpha}
        sizes = (t.shape[0] for part, t in tensors.items() if part in RANK_PARTS and t.ndim)
        rank = next(sizes, getattr(config, "r", None))
        reports.append(
            LayerReport(
                name=name,
                parameters=sum(t.numel() for t in tensors.values() if t.is_floating_point()),
                rank=rank if name in found.layers and isinstance(rank, int) else None,
                norm=_norm(tensors.values()),
                change=_change(low_rank(tensors, alpha, config)),
            )
        )
    return reports, sorted(alphas)


def each_layer(weights: Path, found: Recognised) -> Iterator[tuple[str, dict[str, Tensor], float | None]]:
    """Name, tensors by part, and the alpha of its own, of every layer and every module trained in full.

    Raises:
        AdapterError: an alpha is no single number.
    """
    parts_of = {**found.layers, **{name: {key: key for key in keys} for name, keys in found.full.items()}}
    with safe_open(weights, framework="pt") as file:
        for name, parts in parts_of.items():
            tensors = {part: file.get_tensor(key) for part, key in parts.items()}
            alpha = tensors.pop(ALPHA, None)
            if alpha is not None and alpha.numel() != 1:
                raise AdapterError(
                    f"{weights}: {parts[ALPHA]!r} must hold one number, found shape {tuple(alpha.shape)}"
                )
            yield name, tensors, None if alpha is None else float(alpha)


def _norm(tensors: Iterable[Tensor]) -> float | None:
    squares = sum(float(t.double().square().sum()) for t in tensors if t.is_floating_point())
    return math.sqrt(squares) if math.isfinite(squares) else None


def _change(found: LowRank | None) -> float | None:
    """``‖scale · B A‖`` without building the product: ``tr((A Aᵀ)(Bᵀ B))``."""
    if found is None:
        return None
    squares = float(((found.A @ found.A.T) * (found.B.T @ found.B)).sum())
    return found.scale * math.sqrt(max(squares, 0.0)) if math.isfinite(squares) else None


def low_rank(tensors: Mapping[str, Tensor], alpha: float | None, config: Any) -> LowRank | None:
    """The low-rank change that a layer's tensors are, where the file tells it."""
    down, up = (tensors.get(a, tensors.get(b)) for a, b in ((DOWN, "lora_A"), (UP, "lora_B")))
    if down is None or up is None or set(tensors) - {DOWN, UP, "lora_A", "lora_B"} or min(down.ndim, up.ndim) < 2:
        return None
    A, B = down.double().flatten(1), up.double().flatten(1)
    if A.shape[0] != B.shape[1] or getattr(config, "rank_pattern", None) or getattr(config, "alpha_pattern", None):
        return None
    rank = A.shape[0]
    alpha = float(getattr(config, "lora_alpha", rank)) if alpha is None else alpha
    return LowRank(alpha / max(1, math.sqrt(rank) if getattr(config, "use_rslora", False) else rank), A, B)
