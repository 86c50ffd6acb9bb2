"""The formulas, in plain torch: slow, differentiable as often as wanted, the truth for the operators."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from peft_kernels.ops.frozen import per_dimension


def changed_weight(
    weight: Float[Tensor, "*shape"],
    index: Int[Tensor, " count"],
    values: Float[Tensor, " count"],
    replace: bool = False,
) -> Float[Tensor, "*shape"]:
    """The frozen weight with ``values`` added to (or put in place of) its entries at the flat places ``index``."""
    flat, index = weight.detach().reshape(-1), index.long()
    flat = flat.index_copy(0, index, values) if replace else flat.index_add(0, index, values)
    return flat.view(weight.shape)


def sparse_linear(
    x: Float[Tensor, "*batch in"],
    weight: Float[Tensor, "out in"],
    index: Int[Tensor, " count"],
    values: Float[Tensor, " count"],
    bias: Float[Tensor, "out"] | None = None,
    replace: bool = False,
) -> Float[Tensor, "*batch out"]:
    """``x W'ᵀ + b``."""
    return F.linear(x, changed_weight(weight, index, values, replace), bias)


def sparse_conv(
    x: Float[Tensor, "batch channels *space"],
    weight: Float[Tensor, "out per_group *kernel"],
    index: Int[Tensor, " count"],
    values: Float[Tensor, " count"],
    bias: Float[Tensor, "out"] | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    replace: bool = False,
) -> Float[Tensor, "batch out *moved"]:
    """The convolution of ``x`` with ``W'``."""
    s, p, d = (per_dimension(value, weight.ndim - 2) for value in (stride, padding, dilation))
    changed = changed_weight(weight, index, values, replace)
    return torch.ops.aten.convolution(x, changed, bias, s, p, d, False, [0] * len(s), groups)
