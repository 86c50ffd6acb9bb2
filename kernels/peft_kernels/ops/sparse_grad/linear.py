"""The linear operator: opaque, so that `torch.compile` does not keep what it makes again.

FLOPs: 2 T n forward, 2 T n for dX and 2 T K for dδ (n entries, K of them trained, T tokens). Kept for the backward
pass: x, and by reference W, I and δ; nothing of the weight's size. The changed weight lives within one pass.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from peft_kernels.ops.frozen import autocast_pair

from .entries import changed, product_at


def sparse_linear(
    x: Float[Tensor, "*batch in"],
    weight: Float[Tensor, "out in"],
    index: Int[Tensor, " count"],
    values: Float[Tensor, " count"],
    bias: Float[Tensor, "out"] | None = None,
    replace: bool = False,
) -> Float[Tensor, "*batch out"]:
    """``x W'ᵀ + b`` with gradients for x, values and b; the weight gets none.

    Args:
        x: any number of batch dimensions.
        weight: frozen.
        index: flat, row-major places in the weight, ascending.
        values: added to the entries there (SPT's δ), or with ``replace`` put in their place (SaRA's v).
        bias: trained or not.
        replace: what ``values`` are.
    """
    return _linear(*autocast_pair(x, bias), weight, index, values, replace)


@torch.library.custom_op("peft_kernels::sparse_linear", mutates_args=())
def _linear(
    x: Tensor, bias: Tensor | None, weight: Tensor, index: Tensor, values: Tensor, replace: bool
) -> Tensor:  # fmt: skip
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x, changed(weight, index, values, replace, x.dtype), bias)


@_linear.register_fake
def _(x, bias, weight, index, values, replace):
    return x.new_empty(*x.shape[:-1], len(weight))


@torch.library.custom_op("peft_kernels::sparse_linear_input_gradient", mutates_args=())
def _input_gradient(gy: Tensor, weight: Tensor, index: Tensor, values: Tensor, replace: bool) -> Tensor:
    with torch.autocast(gy.device.type, enabled=False):
        return gy @ changed(weight, index, values, replace, gy.dtype)


@_input_gradient.register_fake
def _(gy, weight, index, values, replace):
    return gy.new_empty(*gy.shape[:-1], weight.shape[1])


@torch.library.custom_op("peft_kernels::sparse_linear_values_gradient", mutates_args=())
def _values_gradient(gy: Tensor, x: Tensor, index: Tensor, values: Tensor) -> Tensor:
    with torch.autocast(gy.device.type, enabled=False):
        return product_at(gy.flatten(0, -2), x.flatten(0, -2), index).to(values.dtype)


@_values_gradient.register_fake
def _(gy, x, index, values):
    return torch.empty_like(values)


def _context(ctx, inputs, output):
    x, _, weight, index, values, ctx.replace = inputs
    ctx.save_for_backward(x, weight, index, values)


def _gradients(ctx, gy):
    x, weight, index, values = ctx.saved_tensors
    need_x, need_bias, _, _, need_values, _ = ctx.needs_input_grad
    return (
        _input_gradient(gy, weight, index, values, ctx.replace) if need_x else None,
        gy.reshape(-1, gy.shape[-1]).sum(0) if need_bias else None,
        None,
        None,
        _values_gradient(gy, x, index, values) if need_values else None,
        None,
    )


_linear.register_autograd(_gradients, setup_context=_context)
