"""y = x (W0 + S)^T + b as one product: what runs where nothing random lies between W0 and S.

2 T N FLOPs forward and 4 T N backward for T rows of x and N = out * in, against 2 and 2 of a frozen linear layer.
"""

from collections.abc import Sequence
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .blocks import Group
from .passes import SlicePass


def forward(
    x: Float[Tensor, "*batch in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, "out"] | None,
    passes: Sequence[SlicePass],
    groups: Sequence[Group],
    gain: float,
) -> Float[Tensor, "*batch out"]:
    """Output. Scratch: N entries for W0 + S, and where slices share rows those of the largest slice."""
    return F.linear(x, _effective(weight, passes, groups, gain), bias)


def _effective(
    weight: Float[Tensor, "out in"], passes: Sequence[SlicePass], groups: Sequence[Group], gain: float
) -> Float[Tensor, "out in"]:
    alone = all(a.rows.stop <= b.rows.start or b.rows.stop <= a.rows.start for a, b in combinations(passes, 2))
    if not alone or any(one.dtype != weight.dtype for one in passes):
        effective = weight.clone()
        for one in passes:
            for rows, _ in one.sweep(groups, one.scratch()):
                one.put(effective[rows], effective[rows], one.spec.scale * gain)
        return effective
    effective = torch.empty_like(weight)
    for group in groups:
        if not any(one.covers(group) for one in passes):
            effective[group.rows] = weight[group.rows]
    for one in passes:  # each delta is made, gated and added to W0 in its place
        for rows, room in one.sweep(groups, effective[one.rows]):
            one.put(weight[rows], room, one.spec.scale * gain)
    return effective


def backward(
    gy: Float[Tensor, "rows out"],
    x: Float[Tensor, "rows in"] | None,
    weight: Float[Tensor, "out in"],
    passes: Sequence[SlicePass],
    groups: Sequence[Group],
    gain: float,
    gx: Float[Tensor, "rows in"] | None,
    gweight: Float[Tensor, "out in"] | None,
) -> None:
    """Write `gx` and `gweight`; the passes take in their gradients where `x` is there. Scratch: one group."""
    room = gy.new_empty(max(group.rows.stop - group.rows.start for group in groups), weight.shape[1])
    for index, group in enumerate(groups):
        covering = [one for one in passes if one.covers(group)]
        effective = room[: group.rows.stop - group.rows.start]  # its place is the gradient's until that is used
        grad = None
        if x is not None and (covering or gweight is not None):
            grad = torch.mm(gy[:, group.rows].T, x, out=effective)
        if gweight is not None and grad is not None:
            gweight[group.rows] = grad
        for rows in group.blocks:
            total, local = weight[rows], group.local(rows)
            for one in covering:
                one.restore(rows)
                if grad is not None:
                    one.accumulate(rows, grad[local])
            for one in covering:
                one.put(total, effective[local], one.spec.scale * gain)
                total = effective[local]
        if gx is not None:
            gx.addmm_(gy[:, group.rows], effective if covering else weight[group.rows], beta=float(index > 0))
