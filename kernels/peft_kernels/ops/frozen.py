"""Linear and convolution with a frozen weight, as opaque operators that keep nothing of their input.

The gradient of x needs the weight alone, and that of the bias the output's gradient alone. Stock convolution keeps x
all the same; stock linear does not, but both keep a half-precision copy of the weight under autocast. Here the weight
is kept by reference, in its own dtype, and cast again. SCEdit's and DiffFit's memory rests on this.
FLOPs: the stock operators'. Bytes kept for the backward pass: 0.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def frozen_linear(
    x: Float[Tensor, "*batch in"], weight: Float[Tensor, "out in"], bias: Float[Tensor, "out"] | None = None
) -> Float[Tensor, "*batch out"]:
    """x W^T + b with gradients for x and b; a weight that requires a gradient gets the stock operator."""
    if weight.requires_grad:
        return F.linear(x, weight, bias)
    return _linear(*autocast_pair(x, bias), weight)


def frozen_conv(
    x: Float[Tensor, "batch channels *space"],
    weight: Float[Tensor, "out per_group *kernel"],
    bias: Float[Tensor, "out"] | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Float[Tensor, "batch out *moved"]:
    """Convolution over 1, 2 or 3 dimensions with gradients for x and b; padding in numbers, x with its batch dimension.

    A weight that requires a gradient gets the stock operator.
    """
    s, p, d = (per_dimension(value, weight.ndim - 2) for value in (stride, padding, dilation))
    convolve = stock_conv if weight.requires_grad else _conv
    return convolve(*autocast_pair(x, bias), weight, s, p, d, groups)


def autocast_pair(x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """x and bias in the dtype in which the stock operators would take them."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(x.device.type))
        bias = None if bias is None else bias.to(x.dtype)
    return x, bias


def per_dimension(value: int | Sequence[int], dimensions: int) -> list[int]:
    """One number for each dimension."""
    return [value] * dimensions if isinstance(value, int) else list(value)


def stock_conv(
    x: Tensor, bias: Tensor | None, weight: Tensor,
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """torch's convolution over any number of dimensions."""
    return torch.ops.aten.convolution(
        x, weight.to(x.dtype), bias, stride, padding, dilation, False, [0] * len(stride), groups
    )


def conv_input_gradient(
    gy: Tensor, weight: Tensor, shape: Sequence[int],
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """Gradient of a convolution's input from its shape; the operator asks for an input it does not read."""
    absent = gy.new_empty(1).expand(list(shape))
    gx, _, _ = torch.ops.aten.convolution_backward(
        gy, absent, weight.to(gy.dtype), None, stride, padding, dilation, False, [0] * len(stride), groups,
        [True, False, False],
    )  # fmt: skip
    return gx


def conv_weight_gradient(
    gy: Tensor, x: Tensor, shape: Sequence[int],
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """Gradient of a convolution's weight from its shape."""
    absent = gy.new_empty(1).expand(list(shape))
    _, gweight, _ = torch.ops.aten.convolution_backward(
        gy, x, absent, None, stride, padding, dilation, False, [0] * len(stride), groups, [False, True, False]
    )
    return gweight


@torch.library.custom_op("peft_kernels::frozen_linear", mutates_args=())
def _linear(x: Tensor, bias: Tensor | None, weight: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x, weight.to(x.dtype), bias)


@_linear.register_fake
def _(x, bias, weight):
    return x.new_empty(*x.shape[:-1], len(weight))


@torch.library.custom_op("peft_kernels::frozen_linear_backward", mutates_args=())
def _linear_backward(gy: Tensor, weight: Tensor) -> Tensor:
    with torch.autocast(gy.device.type, enabled=False):
        return gy @ weight.to(gy.dtype)


@_linear_backward.register_fake
def _(gy, weight):
    return gy.new_empty(*gy.shape[:-1], weight.shape[1])


def _linear_context(ctx, inputs, output):
    ctx.save_for_backward(inputs[2])


def _linear_gradients(ctx, gy):
    (weight,) = ctx.saved_tensors
    need_x, need_bias, _ = ctx.needs_input_grad
    return (
        _linear_backward(gy, weight) if need_x else None,
        gy.reshape(-1, gy.shape[-1]).sum(0) if need_bias else None,
        None,
    )


@torch.library.custom_op("peft_kernels::frozen_conv", mutates_args=())
def _conv(
    x: Tensor, bias: Tensor | None, weight: Tensor,
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    with torch.autocast(x.device.type, enabled=False):
        return stock_conv(x, bias, weight, stride, padding, dilation, groups)


@_conv.register_fake
def _(x, bias, weight, stride, padding, dilation, groups):
    return stock_conv(x, bias, weight, stride, padding, dilation, groups)


@torch.library.custom_op("peft_kernels::frozen_conv_backward", mutates_args=())
def _conv_backward(
    gy: Tensor, weight: Tensor, shape: Sequence[int],
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    with torch.autocast(gy.device.type, enabled=False):
        return conv_input_gradient(gy, weight, shape, stride, padding, dilation, groups)


@_conv_backward.register_fake
def _(gy, weight, shape, stride, padding, dilation, groups):
    return conv_input_gradient(gy, weight, shape, stride, padding, dilation, groups)


def _conv_context(ctx, inputs, output):
    x, _, weight, *ctx.geometry = inputs
    ctx.shape = x.shape
    ctx.save_for_backward(weight)


def _conv_gradients(ctx, gy):
    (weight,) = ctx.saved_tensors
    need_x, need_bias = ctx.needs_input_grad[:2]
    gx = _conv_backward(gy, weight, ctx.shape, *ctx.geometry) if need_x else None
    return gx, gy.sum((0, *range(2, gy.ndim))) if need_bias else None, None, None, None, None, None


_linear.register_autograd(_linear_gradients, setup_context=_linear_context)
_conv.register_autograd(_conv_gradients, setup_context=_conv_context)
