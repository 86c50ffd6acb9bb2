"""y = x W0^T + b + keep * ((x * drop) S^T) * gain: what runs under dropout, drop-path and half precision.

Two products in place of one, so 4 T N FLOPs forward and 6 T N backward; on a CPU the delta's share is spent on the
samples that drop-path keeps. In float16 a block of S is scaled by a power of two into range before its product.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .passes import SlicePass

_SHORT = 32  # shorter runs of kept rows are not worth products of their own


def dropped(x: Float[Tensor, "*batch in"], drop: Bool[Tensor, "*batch in"] | None) -> Float[Tensor, "rows in"]:
    """x where it is kept, else 0, as a matrix."""
    return (x if drop is None else torch.where(drop, x, 0)).reshape(-1, x.shape[-1])


class Kept:
    """The samples drop-path left to one slice: as runs of rows that are worth a product, or as a factor on all rows."""

    def __init__(self, keep: Bool[Tensor, "batch"] | None, rows: int):
        self.factor: Bool[Tensor, "rows 1"] | None = None
        self.runs = [slice(0, rows)]
        if keep is None:
            return
        each = rows // keep.numel()
        if keep.is_cpu:
            flags = [False, *keep.tolist(), False]
            edges = [i * each for i, (a, b) in enumerate(pairwise(flags)) if a != b]
            runs = [slice(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True)]
            if all(run.stop - run.start >= _SHORT for run in runs):
                self.runs = runs
                return
        self.factor = keep.repeat_interleave(each)[:, None]

    def of(self, values: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        """Values with the factor on them; nothing to do where runs are used."""
        return values if self.factor is None else values * self.factor


def forward(
    y: Float[Tensor, "rows out"],
    x: Float[Tensor, "rows in"],
    keep: Bool[Tensor, "slices batch"] | None,
    passes: Sequence[SlicePass],
    blocks: Sequence[slice],
    gain: float,
) -> None:
    """Add the deltas' output to `y`, x being dropped out already. Scratch: N of the largest slice."""
    for index, one in enumerate(passes):
        kept = Kept(None if keep is None else keep[index], len(x))
        x_kept = kept.of(x)
        for rows, S in one.sweep(blocks):
            for run in kept.runs:
                _add_product(y[run, rows], x_kept[run], S.T, one.spec.scale * gain)


def backward(
    gy: Float[Tensor, "rows out"],
    x: Float[Tensor, "rows in"] | None,
    keep: Bool[Tensor, "slices batch"] | None,
    passes: Sequence[SlicePass],
    blocks: Sequence[slice],
    gain: float,
    gx: Float[Tensor, "rows in"] | None,
) -> None:
    """Add the deltas' share to `gx` and give the passes their gradients where `x` is there. Scratch: some blocks."""
    for index, one in enumerate(passes):
        kept = Kept(None if keep is None else keep[index], len(gy))
        for rows in (rows for rows in blocks if one.covers(rows)):
            gy_kept = kept.of(gy[:, rows])
            S = one.sparse(rows)
            grad = torch.zeros_like(S)
            for run in kept.runs:
                if gx is not None:
                    _add_product(gx[run], gy_kept[run], S, one.spec.scale * gain)
                if x is not None:
                    _add_product(grad, gy_kept[run].T, x[run], 1.0)
            if x is not None:
                one.accumulate(rows, grad, spoil=True)


def into_range(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Values in `dtype`, in float16 divided by the power of two just above the largest; and that power's exponent."""
    if dtype != torch.float16 or values.numel() == 0:
        return values.to(dtype), None
    exponent = torch.frexp(values.abs().amax()).exponent
    return torch.ldexp(values, -exponent).to(dtype), exponent


def out_of_range(values: Tensor, exponent: Tensor | None) -> Tensor:
    """Values times 2^exponent, in their dtype."""
    return values if exponent is None else torch.ldexp(values.float(), exponent).to(values.dtype)


def _add_product(out: Tensor, left: Tensor, right: Tensor, factor: float) -> None:
    """out += factor * left @ right, with `right` brought to the dtype of `left`."""
    right, exponent = into_range(right, left.dtype)
    if out.dtype == left.dtype and exponent is None:
        out.addmm_(left, right, alpha=factor)
    else:
        out.add_(out_of_range(left @ right, exponent), alpha=factor)
