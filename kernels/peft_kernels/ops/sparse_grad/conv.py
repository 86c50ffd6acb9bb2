"""The convolution operator, over 1, 2 or 3 dimensions, grouped and depthwise too; see `linear` for what it keeps.

A pointwise convolution is a linear layer over its pixels and takes sampled products. Others make the dense gradient of
a block of output channels at a time, and only of blocks that own entries.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from peft_kernels.ops.frozen import (
    autocast_pair,
    conv_input_gradient,
    conv_weight_gradient,
    per_dimension,
    stock_conv,
)

from .entries import blocks, changed, product_at


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
    """The convolution of ``x`` with ``W'``; arguments as of `sparse_linear`, padding in numbers."""
    s, p, d = (per_dimension(value, weight.ndim - 2) for value in (stride, padding, dilation))
    return _conv(*autocast_pair(x, bias), weight, index, values, replace, s, p, d, groups)


@torch.library.custom_op("peft_kernels::sparse_conv", mutates_args=())
def _conv(
    x: Tensor, bias: Tensor | None, weight: Tensor, index: Tensor, values: Tensor, replace: bool,
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    with torch.autocast(x.device.type, enabled=False):
        w = changed(weight, index, values, replace, x.dtype)
        return stock_conv(x, bias, w, stride, padding, dilation, groups)


@_conv.register_fake
def _(x, bias, weight, index, values, replace, stride, padding, dilation, groups):
    return stock_conv(x, bias, weight, stride, padding, dilation, groups)


@torch.library.custom_op("peft_kernels::sparse_conv_input_gradient", mutates_args=())
def _input_gradient(
    gy: Tensor, weight: Tensor, index: Tensor, values: Tensor, replace: bool, shape: Sequence[int],
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    with torch.autocast(gy.device.type, enabled=False):
        w = changed(weight, index, values, replace, gy.dtype)
        return conv_input_gradient(gy, w, shape, stride, padding, dilation, groups)


@_input_gradient.register_fake
def _(gy, weight, index, values, replace, shape, stride, padding, dilation, groups):
    return conv_input_gradient(gy, weight, shape, stride, padding, dilation, groups)


@torch.library.custom_op("peft_kernels::sparse_conv_values_gradient", mutates_args=())
def _values_gradient(
    gy: Tensor, x: Tensor, index: Tensor, values: Tensor, shape: Sequence[int],
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    with torch.autocast(gy.device.type, enabled=False):
        size = torch.Size(shape)
        if groups == 1 and size[1:].numel() == size[1] and set(stride) == {1} and not any(padding):
            gy, x = (tensor.movedim(1, -1).flatten(0, -2) for tensor in (gy, x))
            return product_at(gy, x, index).to(values.dtype)
        found = torch.zeros_like(values)
        columns, inner, outer = size[1:].numel(), size[1], size[0] // groups
        for start, stop, first, last in blocks(index, size[0], columns, multiple=outer if groups > 1 else 1):
            part, taken = x, 1
            if groups > 1:
                taken = (stop - start) // outer
                part = x[:, start // outer * inner : stop // outer * inner]
            block = [stop - start, *size[1:]]
            dense = conv_weight_gradient(gy[:, start:stop], part, block, stride, padding, dilation, taken)
            found[first:last] = dense.reshape(-1).index_select(0, index[first:last] - start * columns).to(found.dtype)
        return found


@_values_gradient.register_fake
def _(gy, x, index, values, shape, stride, padding, dilation, groups):
    return torch.empty_like(values)


def _context(ctx, inputs, output):
    x, _, weight, index, values, ctx.replace, *ctx.geometry = inputs
    ctx.save_for_backward(x, weight, index, values)


def _gradients(ctx, gy):
    x, weight, index, values = ctx.saved_tensors
    need_x, need_bias, _, _, need_values = ctx.needs_input_grad[:5]
    change = (index, values, ctx.replace)
    return (
        _input_gradient(gy, weight, *change, x.shape, *ctx.geometry) if need_x else None,
        gy.sum((0, *range(2, gy.ndim))) if need_bias else None,
        None,
        None,
        _values_gradient(gy, x, index, values, weight.shape, *ctx.geometry) if need_values else None,
        *[None] * 5,
    )


_conv.register_autograd(_gradients, setup_context=_context)
