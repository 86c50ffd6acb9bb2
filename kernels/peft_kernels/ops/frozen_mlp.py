"""A frozen perceptron between trained biases and factors, ``y = γ₂ (W₂ φ(γ₁ (W₁ x + b₁)) + b₂)``, that keeps no hidden
tensor.

Stock layers keep what φ reads, four or eight times as wide as x, and with a gated φ both of its factors. Here it is
computed again for backward, a block of rows at a time, so that no tensor of the hidden width stands whole then. φ is
GELU, exact or by tanh, or GEGLU, ``φ(a, g) = a gelu(g)`` on the two halves. DiffFit's memory rests on this.
FLOPs: those of the two frozen layers, and once more the first one's forward pass. Bytes kept for the backward pass:
those of x, and those of y if γ₂ is trained (see `scaled`).
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .frozen import autocast_pair
from .scaled import _factor_gradient, least_factor

ACTIVATIONS = ("gelu", "gelu_tanh", "geglu")
ROWS = 128  # of a block at least: fewer do not fill a product
BLOCKS = 8  # at most


def frozen_mlp_reference(
    x: Float[Tensor, "*batch in"],
    weight1: Float[Tensor, "inner in"],
    bias1: Float[Tensor, "inner"] | None,
    factor1: Float[Tensor, "inner"] | None,
    weight2: Float[Tensor, "out hidden"],
    bias2: Float[Tensor, "out"] | None,
    factor2: Float[Tensor, "out"] | None,
    activation: str,
) -> Float[Tensor, "*batch out"]:
    """The formula as it stands; ``inner`` is the hidden width, twice that for GEGLU."""
    one, two = (1 if factor is None else factor for factor in (factor1, factor2))
    inner = one * F.linear(x, weight1, bias1)
    if activation == "geglu":
        value, gate = inner.chunk(2, dim=-1)
        return two * F.linear(value * F.gelu(gate), weight2, bias2)
    return two * F.linear(F.gelu(inner, approximate=_approximate(activation)), weight2, bias2)


def frozen_mlp(
    x: Float[Tensor, "*batch in"],
    weight1: Float[Tensor, "inner in"],
    bias1: Float[Tensor, "inner"] | None,
    factor1: Float[Tensor, "inner"] | None,
    weight2: Float[Tensor, "out hidden"],
    bias2: Float[Tensor, "out"] | None,
    factor2: Float[Tensor, "out"] | None,
    activation: str,
) -> Float[Tensor, "*batch out"]:
    """The formula with gradients for x, biases and factors; weights get none. Factors are not rounded to x's dtype.

    Raises:
        ValueError: no such activation.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; found {activation!r}")
    x, bias1 = autocast_pair(x, bias1)
    _, bias2 = autocast_pair(x, bias2)
    return _mlp(x, bias1, factor1, bias2, factor2, weight1, weight2, activation)


def _approximate(activation: str) -> str:
    return "tanh" if activation == "gelu_tanh" else "none"


def _times(y: Tensor, factor: Tensor | None) -> Tensor:
    """y, overwritten by ``γ y``."""
    return y if factor is None else y.mul_(least_factor(factor, y.dtype))


def _activated(inner: Tensor, activation: str) -> Tensor:
    """φ, in the place of what it reads."""
    if activation == "geglu":
        value, gate = inner.chunk(2, dim=-1)
        return value.mul_(torch.ops.aten.gelu_(gate))
    return torch.ops.aten.gelu_(inner, approximate=_approximate(activation))


def _activation_gradient(gh: Tensor, inner: Tensor, activation: str) -> Tensor:
    """Gradient of what φ reads, in its place, from that of what φ gives."""
    if activation == "geglu":
        value, gate = inner.chunk(2, dim=-1)
        ggate = gh * value
        torch.mul(gh, F.gelu(gate), out=value)
        torch.ops.aten.gelu_backward.grad_input(ggate, gate, grad_input=gate)
        return inner
    return torch.ops.aten.gelu_backward.grad_input(gh, inner, approximate=_approximate(activation), grad_input=inner)


def _blocks(rows: int) -> Iterator[slice]:
    size = max(ROWS, -(-rows // BLOCKS))
    return (slice(start, start + size) for start in range(0, rows, size))


@torch.library.custom_op("peft_kernels::frozen_mlp", mutates_args=())
def _mlp(
    x: Tensor, bias1: Tensor | None, factor1: Tensor | None, bias2: Tensor | None, factor2: Tensor | None,
    weight1: Tensor, weight2: Tensor, activation: str,
) -> Tensor:  # fmt: skip
    with torch.autocast(x.device.type, enabled=False):
        inner = _times(F.linear(x, weight1.to(x.dtype), bias1), factor1)
        return _times(F.linear(_activated(inner, activation), weight2.to(x.dtype), bias2), factor2)


@_mlp.register_fake
def _(x, bias1, factor1, bias2, factor2, weight1, weight2, activation):
    return x.new_empty(*x.shape[:-1], len(weight2))


@torch.library.custom_op("peft_kernels::frozen_mlp_backward", mutates_args=())
def _mlp_backward(
    gy: Tensor, x: Tensor, bias1: Tensor | None, factor1: Tensor | None, factor2: Tensor | None,
    weight1: Tensor, weight2: Tensor, activation: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, b₁ and γ₁ from that of y, a block of rows after the other."""
    with torch.autocast(gy.device.type, enabled=False):
        first, second = weight1.to(x.dtype), weight2.to(x.dtype)
        rows, upper = x.reshape(-1, x.shape[-1]), gy.reshape(-1, gy.shape[-1])
        lower = torch.empty_like(rows, memory_format=torch.contiguous_format)
        wide = torch.promote_types(x.dtype, torch.float32)
        gbias, gfactor = (x.new_zeros(len(weight1), dtype=wide) for _ in range(2))
        for block in _blocks(len(rows)):
            z = F.linear(rows[block], first, bias1)
            inner = z if factor1 is None else _times(z.clone(), factor1)
            ginner = upper[block] if factor2 is None else _times(upper[block].clone(), factor2)
            ginner = _activation_gradient(ginner @ second, inner, activation)
            if factor1 is not None:
                gfactor += (ginner * z.to(wide)).sum(0)
                ginner = _times(ginner, factor1)
            gbias += ginner.sum(0, dtype=wide)
            torch.mm(ginner, first, out=lower[block])
        return lower.view(x.shape), gbias.to(x.dtype), gfactor


@_mlp_backward.register_fake
def _(gy, x, bias1, factor1, factor2, weight1, weight2, activation):
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(x.shape), x.new_empty(len(weight1)), x.new_empty(len(weight1), dtype=wide)


def _context(ctx, inputs, output):
    x, bias1, factor1, _, factor2, weight1, weight2, ctx.activation = inputs
    trained = factor2 is not None and factor2.requires_grad
    ctx.save_for_backward(x, bias1, factor1, factor2, weight1, weight2, output if trained else None)


def _gradients(ctx, gy):
    x, bias1, factor1, factor2, weight1, weight2, y = ctx.saved_tensors
    gx = gbias1 = gfactor1 = gbias2 = gfactor2 = None
    need_x, need_bias1, need_factor1, need_bias2, need_factor2 = ctx.needs_input_grad[:5]
    if need_bias2:
        gbias2 = gy.reshape(-1, gy.shape[-1]).sum(0)
        gbias2 = gbias2 if factor2 is None else (gbias2 * least_factor(factor2, gy.dtype)).to(gy.dtype)
    if need_factor2:
        gfactor2 = _factor_gradient(gy, y, None, factor2, weight2, False)
    if need_x or need_bias1 or need_factor1:
        gx, gbias1, gfactor1 = _mlp_backward(gy, x, bias1, factor1, factor2, weight1, weight2, ctx.activation)
        gfactor1 = gfactor1.to(factor1.dtype) if need_factor1 else None
    return gx if need_x else None, gbias1 if need_bias1 else None, gfactor1, gbias2, gfactor2, None, None, None


_mlp.register_autograd(_gradients, setup_context=_context)
