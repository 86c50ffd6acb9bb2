"""Linear with a frozen weight and a trained factor on every output, ``y = γ (W x + b)``, that keeps one tensor.

A factor's gradient ``Σ g z`` needs ``z = W x + b``, which a stock product keeps beside ``y``. Here it is read off a
tensor that its neighbours keep anyway: the output (a gate, an activation or an attention after it needs ``y``;
``z = y / γ``), or the input (an attention keeps what it puts out; ``z`` is computed again by one product). DiffFit's
memory rests on this.

The bias stands inside, so that ``y / γ`` has no cancellation; a factor nearer to 0 than `least_factor` counts as that.
FLOPs: the frozen linear's, and once more its forward pass for the factor's gradient when the input is kept.
Bytes kept for the backward pass: those of ``y`` or of ``x``, none where a neighbour keeps the same tensor.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .frozen import _linear_backward, autocast_pair


def scaled_linear_reference(
    x: Float[Tensor, "*batch in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, "out"] | None,
    factor: Float[Tensor, "out"],
) -> Float[Tensor, "*batch out"]:
    """γ (W x + b) as the formula stands."""
    return factor * F.linear(x, weight, bias)


def scaled_linear(
    x: Float[Tensor, "*batch in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, "out"] | None,
    factor: Float[Tensor, "out"],
    keep_input: bool = False,
) -> Float[Tensor, "*batch out"]:
    """γ (W x + b) with gradients for x, b and γ, in the dtype of x; γ is not rounded to it.

    Args:
        x: input.
        weight: frozen.
        bias: may be absent.
        factor: γ.
        keep_input: keep x instead of y for the backward pass.
    """
    x, bias = autocast_pair(x, bias)
    return _scaled(x, bias, factor, weight, keep_input)


def least_factor(factor: Tensor, dtype: torch.dtype) -> Tensor:
    """γ with magnitudes of at least 2^-60 (float16: 2^-10), so that it can be divided by; the sign is kept."""
    least = 2.0**-10 if dtype == torch.float16 else 2.0**-60
    return torch.where(factor.abs() < least, torch.full_like(factor, least).copysign(factor), factor)


@torch.library.custom_op("peft_kernels::scaled_linear", mutates_args=())
def _scaled(x: Tensor, bias: Tensor | None, factor: Tensor, weight: Tensor, keep_input: bool) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x, weight.to(x.dtype), bias).mul_(least_factor(factor, x.dtype))


@_scaled.register_fake
def _(x, bias, factor, weight, keep_input):
    return x.new_empty(*x.shape[:-1], len(weight))


@torch.library.custom_op("peft_kernels::scaled_linear_factor_gradient", mutates_args=())
def _factor_gradient(
    gy: Tensor, kept: Tensor, bias: Tensor | None, factor: Tensor, weight: Tensor, keep_input: bool
) -> Tensor:
    with torch.autocast(gy.device.type, enabled=False):
        z = F.linear(kept, weight.to(kept.dtype), bias) if keep_input else kept
        z = z.to(factor.dtype) if z.dtype.itemsize < factor.dtype.itemsize else z
        total = torch.mul(gy, z).reshape(-1, len(factor)).sum(0)
        return (total if keep_input else total / least_factor(factor, kept.dtype)).to(factor.dtype)


@_factor_gradient.register_fake
def _(gy, kept, bias, factor, weight, keep_input):
    return torch.empty_like(factor)


def _context(ctx, inputs, output):
    x, bias, factor, weight, ctx.keep_input = inputs
    ctx.save_for_backward(x if ctx.keep_input else output, bias if ctx.keep_input else None, factor, weight)


def _gradients(ctx, gy):
    kept, bias, factor, weight = ctx.saved_tensors
    need_x, need_bias, need_factor = ctx.needs_input_grad[:3]
    applied = least_factor(factor, kept.dtype)
    gx = _linear_backward((gy * applied).to(gy.dtype), weight) if need_x else None
    gbias = (gy.reshape(-1, gy.shape[-1]).sum(0) * applied).to(gy.dtype) if need_bias else None
    gfactor = _factor_gradient(gy, kept, bias, factor, weight, ctx.keep_input) if need_factor else None
    return gx, gbias, gfactor, None, None


_scaled.register_autograd(_gradients, setup_context=_context)
