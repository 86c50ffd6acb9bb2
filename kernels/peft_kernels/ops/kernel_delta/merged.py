"""y = x (W0 + S)^T + b as one product: what runs where nothing random lies between W0 and S.

2 T N FLOPs forward and 4 T N backward for T rows of x and N = out * in, against 2 and 2 of a frozen linear layer.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .passes import SlicePass


def forward(
    x: Float[Tensor, "*batch in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, "out"] | None,
    passes: Sequence[SlicePass],
    blocks: Sequence[slice],
    gain: float,
) -> Float[Tensor, "*batch out"]:
    """Output. Scratch: N entries, and N of the largest slice while S is made."""
    effective = weight.clone()
    for one in passes:
        for rows, S in one.sweep(blocks):
            effective[rows].add_(S, alpha=one.spec.scale * gain)
    return F.linear(x, effective, bias)


def backward(
    gy: Float[Tensor, "rows out"],
    x: Float[Tensor, "rows in"] | None,
    weight: Float[Tensor, "out in"],
    passes: Sequence[SlicePass],
    blocks: Sequence[slice],
    gain: float,
    gx: Float[Tensor, "rows in"] | None,
    gweight: Float[Tensor, "out in"] | None,
) -> None:
    """Fill `gx` (zeros) and `gweight`, and give the passes their gradients where `x` is there. Scratch: some blocks."""
    for rows in blocks:
        covering = [one for one in passes if one.covers(rows)]
        if gx is not None or (x is not None and covering):
            effective = weight[rows]
            for one in covering:
                effective = torch.add(effective, one.sparse(rows), alpha=one.spec.scale * gain)
            if gx is not None:
                gx.addmm_(gy[:, rows], effective)
        if x is None or not (covering or gweight is not None):
            continue
        grad = gy[:, rows].T @ x
        if gweight is not None:
            gweight[rows] = grad
        for one in covering:
            one.accumulate(rows, grad)
