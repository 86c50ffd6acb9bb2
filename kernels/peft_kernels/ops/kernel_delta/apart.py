"""y = x W0^T + b + keep * ((x * drop) S^T) * gain: what runs under dropout, drop-path and half precision.

Two products in place of one, so 4 T N FLOPs forward and 6 T N backward; on a CPU the delta's share is spent on the
samples that drop-path keeps. In float16 a block of S is scaled by a power of two into range before its product.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from .blocks import Group
from .passes import SlicePass

_SHORT = 32  # shorter runs of kept rows are not worth products of their own


def dropped(x: Float[Tensor, "*batch in"], drop: Bool[Tensor, "*batch in"] | None) -> Float[Tensor, "rows in"]:
    """x where it is kept, else 0, as a matrix."""
    return (x if drop is None else torch.where(drop, x, 0)).reshape(-1, x.shape[-1])


class Kept:
    """The samples drop-path left to one slice: as runs of rows that are worth a product, or as a factor on all rows."""

    def __init__(self, keep: Bool[Tensor, "batch"] | None, rows: int):
        self.factor: Bool[Tensor, "rows 1"] | None = None
        self.runs, self.gaps = [slice(0, rows)], []
        if keep is None:
            return
        each = rows // keep.numel()
        if keep.is_cpu:
            flags = [False, *keep.tolist(), False]
            edges = [i * each for i, (a, b) in enumerate(pairwise(flags)) if a != b]
            runs = [slice(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True)]
            if all(run.stop - run.start >= _SHORT for run in runs):
                self.runs = runs
                self.gaps = [slice(a, b) for a, b in zip([0, *edges[1::2]], [*edges[::2], rows], strict=True)]
                return
        self.factor = keep.repeat_interleave(each)[:, None]

    def of(self, values: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        """Values with the factor on them; nothing to do where runs are used."""
        return values if self.factor is None else values * self.factor


def forward(
    x: Float[Tensor, "*batch in"],
    weight: Float[Tensor, "out in"] | None,
    bias: Float[Tensor, "out"] | None,
    drop: Bool[Tensor, "*batch in"] | None,
    keep: Bool[Tensor, "slices batch"] | None,
    passes: Sequence[SlicePass],
    groups: Sequence[Group],
    gain: float,
) -> Float[Tensor, "*batch out"]:
    """Output. Scratch: x after dropout, and N of the largest slice."""
    bias = None if bias is None else bias.to(x.dtype)
    if weight is not None:
        y = F.linear(x, weight.to(x.dtype), bias)
    else:
        y = x.new_zeros(*x.shape[:-1], groups[-1].rows.stop)
        y = y if bias is None else y.add_(bias)
    rows_y, rows_x = y.view(-1, y.shape[-1]), dropped(x, drop)
    for index, one in enumerate(passes):
        kept = Kept(None if keep is None else keep[index], len(rows_x))
        S = one.scratch()
        for _, part in one.sweep(groups, S):
            one.put(None, part)
        seen = kept.of(rows_x)
        for run in kept.runs:
            _add_product(rows_y[run, one.rows], seen[run], S.T, one.spec.scale * gain)
    return y


def backward(
    gy: Float[Tensor, "rows out"],
    x: Float[Tensor, "*batch in"] | None,
    weight: Float[Tensor, "out in"] | None,
    drop: Bool[Tensor, "*batch in"] | None,
    keep: Bool[Tensor, "slices batch"] | None,
    passes: Sequence[SlicePass],
    groups: Sequence[Group],
    gain: float,
    need_x: bool,
) -> Float[Tensor, "rows in"] | None:
    """Gradient of x if needed; the passes take in theirs where `x` is there. Scratch: x after dropout, N entries."""
    rows_x = None if x is None else dropped(x, drop)
    kept = [Kept(None if keep is None else k, len(gy)) for k in ([None] * len(passes) if keep is None else keep)]
    deltas = [
        _restore(part.of(gy[:, one.rows]), rows_x, part.runs, one, groups)
        for one, part in zip(passes, kept, strict=True)
    ]
    if not need_x:
        return None
    exact = torch.promote_types(gy.dtype, torch.float32)  # the shares of the slices add up in it
    if rows_x is not None and drop is not None and rows_x.dtype == exact:
        gx = rows_x  # x after dropout has had its use
    else:
        gx = gy.new_empty(len(gy), passes[0].part.A.shape[1], dtype=exact)
    for index, (S, one, part) in enumerate(zip(deltas, passes, kept, strict=True)):
        gy_kept = part.of(gy[:, one.rows])
        for run in part.runs:
            _add_product(gx[run], gy_kept[run], S, one.spec.scale * gain, beta=float(index > 0))
        for gap in part.gaps if index == 0 else ():
            gx[gap].zero_()
    if drop is not None:
        torch.where(drop.view_as(gx), gx, gx.new_zeros(()), out=gx)
    if weight is not None:
        _add_product(gx, gy, weight.to(gy.dtype), 1.0)
    return gx.to(gy.dtype)


def _restore(
    gy: Float[Tensor, "rows out"],
    x: Float[Tensor, "rows in"] | None,
    runs: list[slice],
    one: SlicePass,
    groups: Sequence[Group],
) -> Float[Tensor, "out in"]:
    """S of a slice without its scale, in the place of its gradient, which the pass takes in where `x` is there."""
    S = one.scratch()
    for group in (group for group in groups if one.covers(group)):
        rows = one.local(group.rows)
        for index, run in enumerate(runs if x is not None else ()):
            assert x is not None
            _add_product(S[rows], gy[run, rows].T, x[run], 1.0, beta=float(index > 0))
        for block in group.blocks:
            part = S[one.local(block)]
            one.restore(block)
            if x is not None and runs:
                one.accumulate(block, part)
            one.put(None, part)
    return S


def into_range(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Values in `dtype`, in float16 divided by the power of two just above the largest; and that power's exponent."""
    if values.dtype == dtype or dtype != torch.float16:
        return values.to(dtype), None
    exponent = torch.frexp(values.abs().amax()).exponent
    return torch.ldexp(values, -exponent).to(dtype), exponent


def out_of_range(values: Tensor, exponent: Tensor | None) -> Tensor:
    """Values times 2^exponent, in their dtype."""
    return values if exponent is None else torch.ldexp(values.float(), exponent).to(values.dtype)


def _add_product(out: Tensor, left: Tensor, right: Tensor, factor: float, beta: float = 1.0) -> None:
    """out = beta * out + factor * left @ right, with `right` brought to the dtype of `left`."""
    right, exponent = into_range(right, left.dtype)
    if out.dtype == left.dtype and exponent is None:
        out.addmm_(left, right, alpha=factor, beta=beta)
        return
    product = out_of_range(left @ right, exponent)
    if beta:
        out.add_(product, alpha=factor)
    else:
        torch.mul(product, factor, out=out)
