"""A perceptron of two layers on every pixel or token, ``F(v) = W₂ gelu(W₁ v + b₁) + b₂``, that keeps two tensors.

SCEdit's tuner (Jiang et al., CVPR 2024). Stock layers keep their inputs ``v`` and ``gelu(·)`` and the pre-activation;
here the activation is computed again for backward, and feature maps are multiplied as they lie, channels first or last.
GELU is the exact form ``z Φ(z)``.
FLOPs: ``4 C h`` a pixel forward, twice that backward (once and a half where ``v`` needs no gradient).
Bytes kept for the backward pass: those of ``v`` and of ``W₁ v + b₁``.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .frozen import autocast_pair


def pointwise_mlp_reference(
    x: Float[Tensor, "*any"],
    w1: Float[Tensor, "hidden channels"],
    b1: Float[Tensor, "hidden"],
    w2: Float[Tensor, "channels hidden"],
    b2: Float[Tensor, "channels"],
    axis: int = -1,
) -> Float[Tensor, "*any"]:
    """F as the formula stands; ``axis`` is that of the channels, -1 (tokens) or 1 (feature maps)."""
    return F.linear(F.gelu(F.linear(x.movedim(axis, -1), w1, b1)), w2, b2).movedim(-1, axis)


def pointwise_mlp(
    x: Float[Tensor, "*any"],
    w1: Float[Tensor, "hidden channels"],
    b1: Float[Tensor, "hidden"],
    w2: Float[Tensor, "channels hidden"],
    b2: Float[Tensor, "channels"],
    axis: int = -1,
) -> Float[Tensor, "*any"]:
    """F with gradients for all of its tensors, in the dtype of x; feature maps keep their memory format.

    What is given as ``x`` is kept as it is: a slice keeps the whole it is cut from.
    """
    x, _ = autocast_pair(x, None)
    return _mlp(x, w1, b1, w2, b2, axis)[0]


def _columns(x: Tensor, axis: int) -> Tensor:
    """x as ``[batch, channels, places]``, a view where its strides allow one."""
    return x.reshape(-1, x.shape[-1]).t()[None] if axis == -1 else x.flatten(2)


def _new(x: Tensor, rows: int, axis: int) -> Tensor:
    """An empty tensor laid out like x, with ``rows`` channels."""
    if axis == -1:
        return x.new_empty(*x.shape[:-1], rows)
    shape = (len(x), rows, *x.shape[2:])
    if x.ndim > 3 and x.shape[1] > 1 and x.stride(1) == 1:  # channels last
        return x.new_empty(shape[0], *shape[2:], rows).movedim(-1, 1)
    return x.new_empty(shape)


def _product(weight: Tensor, x: Tensor, out: Tensor, axis: int, bias: Tensor | None = None) -> Tensor:
    """``out = weight · x (+ bias)`` at every place."""
    columns, places = _columns(x, axis), _columns(out, axis)
    weight = weight.to(x.dtype).expand(len(columns), -1, -1)
    if bias is None:
        torch.bmm(weight, columns, out=places)
    else:
        torch.baddbmm(bias.to(x.dtype)[:, None], weight, columns, out=places)
    return out


def _outer(one: Tensor, other: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    """The sum over all places of ``one otherᵀ``."""
    one, other = _columns(one, axis), _columns(other, axis)
    zero = one.new_zeros(one.shape[1], other.shape[1])
    return torch.addbmm(zero, one, other.transpose(1, 2), beta=0).to(dtype)


@torch.library.custom_op("peft_kernels::pointwise_mlp", mutates_args=())
def _mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        before = _product(w1, x, _new(x, len(w1), axis), axis, b1)
        return _product(w2, F.gelu(before), _new(x, len(w2), axis), axis, b2), before


@_mlp.register_fake
def _(x, w1, b1, w2, b2, axis):
    return _new(x, len(w2), axis), _new(x, len(w1), axis)


@torch.library.custom_op("peft_kernels::pointwise_mlp_backward", mutates_args=())
def _mlp_backward(
    gy: Tensor, x: Tensor, before: Tensor, w1: Tensor, w2: Tensor, axis: int, need_x: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(gy.device.type, enabled=False):
        gw2, gb2 = _outer(gy, F.gelu(before), axis, w2.dtype), _columns(gy, axis).sum((0, 2)).to(w2.dtype)
        inner = _product(w2.t(), gy, _new(before, len(w1), axis), axis)
        inner = torch.ops.aten.gelu_backward(inner, before)
        gx = _product(w1.t(), inner, _new(x, len(w2), axis), axis) if need_x else x.new_empty(0)
        return gx, _outer(inner, x, axis, w1.dtype), _columns(inner, axis).sum((0, 2)).to(w1.dtype), gw2, gb2


@_mlp_backward.register_fake
def _(gy, x, before, w1, w2, axis, need_x):
    gx = _new(x, len(w2), axis) if need_x else x.new_empty(0)
    return gx, torch.empty_like(w1), w1.new_empty(len(w1)), torch.empty_like(w2), w2.new_empty(len(w2))


def _context(ctx, inputs, output):
    x, w1, _, w2, _, ctx.axis = inputs
    _, before = output
    ctx.mark_non_differentiable(before)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, before, w1, w2)


def _gradients(ctx, gy, _):
    if gy is None:
        return None, None, None, None, None, None
    x, before, w1, w2 = ctx.saved_tensors
    need_x = ctx.needs_input_grad[0]
    gx, gw1, gb1, gw2, gb2 = _mlp_backward(gy, x, before, w1, w2, ctx.axis, need_x)
    return gx if need_x else None, gw1, gb1, gw2, gb2, None


_mlp.register_autograd(_gradients, setup_context=_context)
