"""Convolution on W0 + S, with the weight as a matrix [out, in / groups * kernel]: S is recomputed for the backward.

    y = conv(x, W0 + S) + b

Two opaque operators, because autograd's convolution keeps the weight it was given. In half precision S is brought into
range by a power of two and convolved apart from W0.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..frozen import autocast_pair, conv_input_gradient, conv_weight_gradient, per_dimension, stock_conv
from .apart import into_range, out_of_range
from .blocks import block_rows
from .dense import add_deltas, columns, delta_dtype, recompute, restore_deltas, split
from .fused import assemble
from .spec import DeltaSlice, check_slices, encode


def gated_conv(
    x: Float[Tensor, "batch channels *space"],
    weight: Float[Tensor, "out per_group *kernel"] | None,
    bias: Float[Tensor, "out"] | None,
    slices: Sequence[DeltaSlice],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    weight_shape: Sequence[int] | None = None,
) -> Float[Tensor, "batch out *moved"]:
    """Convolution over 1, 2 or 3 dimensions with W0 + S, with gradients for x, weight, bias, A, B and scalars.

    Cost: the FLOPs of a trainable convolution and some 2 (r + 10) N for the delta in each pass.
    Bytes kept: x, A, B, thresholds; scratch: 2 N entries in each pass.

    Args:
        weight: W0; None leaves its convolution out and needs `weight_shape`.

    Raises:
        ValueError: a slice does not fit the weight.
    """
    shape = list(weight.shape) if weight is not None else list(weight_shape or ())
    if not shape:
        raise ValueError("weight_shape is needed where weight is None")
    entries = torch.Size(shape[1:]).numel()
    check_slices(slices, shape[0], entries)
    geometry = [per_dimension(value, len(shape) - 2) for value in (stride, padding, dilation)]
    size = block_rows(entries, x.device.type == "cpu")
    y, _ = _forward(*autocast_pair(x, bias), weight, *columns(slices), encode(slices), shape, *geometry, groups, size)
    return y


def _effective(weight: Tensor | None, S: Float[Tensor, "out in"], dtype: torch.dtype) -> Tensor | None:
    """W0 + S as a matrix, in place of S, where W0 is there and `dtype` holds the sum."""
    if weight is None or dtype.itemsize < 4:
        return None
    return S.to(weight.dtype).add_(weight.view_as(S))


@torch.library.custom_op("peft_kernels::gated_conv", mutates_args=())
def _forward(
    x: Tensor, bias: Tensor | None, weight: Tensor | None, A: list[Tensor], B: list[Tensor], scalars: list[Tensor],
    codes: str, shape: list[int], stride: list[int], padding: list[int], dilation: list[int], groups: int, size: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    geometry = stride, padding, dilation, groups
    with torch.autocast(x.device.type, enabled=False):
        S = A[0].new_zeros(shape[0], A[0].shape[1], dtype=delta_dtype(A))
        thresholds = add_deltas(S, assemble(A, B, scalars, codes), size)
        effective = _effective(weight, S, x.dtype)
        if effective is not None:
            return stock_conv(x, bias, effective.view(shape), *geometry), thresholds
        S, exponent = into_range(S, x.dtype)
        y = out_of_range(stock_conv(x, None, S.view(shape), *geometry), exponent)
        if weight is not None:
            y += stock_conv(x, bias, weight, *geometry)
        elif bias is not None:
            y += bias.view(-1, *[1] * (x.ndim - 2))
        return y, thresholds


@_forward.register_fake
def _(x, bias, weight, A, B, scalars, codes, shape, stride, padding, dilation, groups, size):
    y = stock_conv(x, bias, x.new_empty(shape), stride, padding, dilation, groups)
    return y, A[0].new_empty(len(A), dtype=delta_dtype(A))


@torch.library.custom_op("peft_kernels::gated_conv_backward", mutates_args=())
def _backward(
    gy: Tensor, x: Tensor, weight: Tensor | None, A: list[Tensor], B: list[Tensor], scalars: list[Tensor],
    thresholds: Tensor, codes: str, shape: list[int], stride: list[int], padding: list[int], dilation: list[int],
    groups: int, size: int, need_x: bool, need_weight: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of x and weight where needed, then of A, B and scalars."""
    geometry = stride, padding, dilation, groups
    slices, grads = assemble(A, B, scalars, codes), []
    with torch.autocast(gy.device.type, enabled=False):
        if need_x:
            S = A[0].new_zeros(shape[0], A[0].shape[1], dtype=delta_dtype(A))
            restore_deltas(S, slices, thresholds, size)
            effective = _effective(weight, S, gy.dtype)
            if effective is not None:
                grads.append(conv_input_gradient(gy, effective.view(shape), x.shape, *geometry))
            else:
                S, exponent = into_range(S, gy.dtype)
                gx = out_of_range(conv_input_gradient(gy, S.view(shape), x.shape, *geometry), exponent)
                grads.append(gx if weight is None else gx + conv_input_gradient(gy, weight, x.shape, *geometry))
            del S, effective
        grad = conv_weight_gradient(gy, x, shape, *geometry)
        if need_weight:
            assert weight is not None
            grads.append(grad.to(weight.dtype))
        return grads + recompute(grad.view(shape[0], -1), slices, thresholds, size)


@_backward.register_fake
def _(gy, x, weight, A, B, scalars, thresholds, codes, shape, stride, padding, dilation, groups, size, *needs):
    need_x, need_weight = needs
    grads = [torch.empty_like(x, dtype=gy.dtype)] if need_x else []
    grads += [torch.empty_like(weight)] if need_weight else []
    return grads + [torch.empty_like(t) for t in (*A, *B, *scalars)]


def _setup_context(ctx, inputs, output):
    x, _, weight, A, B, scalars, *ctx.settings = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.number = len(A)
    ctx.save_for_backward(x, weight, output[1], *A, *B, *scalars)


def _gradients(ctx, gy, _):
    x, weight, thresholds, *points = ctx.saved_tensors
    need_x, need_bias, need_weight = ctx.needs_input_grad[:3]
    grads = _backward(gy, x, weight, *split(points, ctx.number), thresholds, *ctx.settings, need_x, need_weight)
    gx = grads.pop(0) if need_x else None
    gweight = grads.pop(0) if need_weight else None
    gbias = gy.sum((0, *range(2, gy.ndim))) if need_bias else None
    return gx, gbias, gweight, *split(grads, ctx.number), *[None] * len(ctx.settings)


_forward.register_autograd(_gradients, setup_context=_setup_context)
