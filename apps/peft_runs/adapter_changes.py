"""How an adapter changes the weights of its model: norms, singular values, and how many of these count.

From a LoRA file alone where there is no base model; of every method that merges, from the weights before and after.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftConfig
from torch import Tensor

from peft_kernels.adapter_formats import Recognised
from peft_runs.adapter_layers import each_layer, low_rank

_NONE = 1e-6  # of the largest singular value: what float32 leaves of none


@dataclass(frozen=True)
class WeightChange:
    """The change of one weight.

    Attributes:
        name: of the parameter, or of the layer in a file.
        shape: of the weight.
        norm: Frobenius norm of the change.
        relative: the same over the norm of the weight, where that is known and not 0.
        singular: singular values of the change as a matrix `[out, the rest]`, descending, without those that are none;
            empty for vectors.
    """

    name: str
    shape: tuple[int, ...]
    norm: float
    relative: float | None
    singular: list[float]

    @property
    def effective_rank(self) -> float | None:
        """``exp(−Σ p ln p)`` of the singular values' shares p (Roy & Vetterli, EUSIPCO 2007); of a vector, none."""
        total = sum(self.singular)
        return math.exp(-sum(s / total * math.log(s / total) for s in self.singular)) if total > 0 else None


def changes_in_file(weights: Path, found: Recognised, config: PeftConfig | None) -> Iterator[WeightChange]:
    """The changes of the layers whose low-rank factors are all that the file holds of them."""
    for name, tensors, alpha in each_layer(weights, found):
        change = low_rank(tensors, alpha, config)
        if change is None or not all(torch.isfinite(factor).all() for factor in change[1:]):
            continue
        # B A = Q_B (R_B R_Aᵀ) Q_Aᵀ: the singular values are those of the small matrix in the middle
        middle = torch.linalg.qr(change.B, "r")[1] @ torch.linalg.qr(change.A.T, "r")[1].T
        values = abs(change.scale) * torch.linalg.svdvals(middle)
        shape = (change.B.shape[0], change.A.shape[1])
        yield WeightChange(name, shape, float(values.norm()), None, _some(values))


def changes_of_weights(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], left_out: Collection[str] = ()
) -> Iterator[WeightChange]:
    """The tensors that differ between two models of the same names.

    Args:
        before: the base model's.
        after: the merged model's.
        left_out: modules whose weights before mean nothing, such as a new head.
    """
    for name, weight in before.items():
        if not weight.is_floating_point() or name.startswith(tuple(f"{module}." for module in left_out)):
            continue
        weight, change = weight.float(), after[name].float() - weight.float()
        norm, size = float(change.norm()), float(weight.norm())
        if norm:
            values = torch.linalg.svdvals(change.flatten(1)) if change.ndim > 1 else change.new_empty(0)
            yield WeightChange(name, tuple(weight.shape), norm, norm / size if size else None, _some(values))


def _some(values: Tensor) -> list[float]:
    return values[values > _NONE * values.amax()].tolist() if len(values) else []
