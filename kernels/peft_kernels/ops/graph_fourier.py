"""The middle of PointGST's adapter: tokens filtered in the spectra of their clouds (Liang et al., TPAMI 2025).

With ``s`` of shape [batch, P + G, r], its last G rows ``t`` the graph's signal, σ = SiLU and
``φ_k(z) = σ(LN_k(z) Aᵀ + a)``:

    h = σ(s),    h[P:] += (t + M₁ᵀ φ₁(M₁ t)) + Σ_l unsorted(τ + M_lᵀ φ₂(M_l τ)),    τ = sorted t, in runs of l tokens

M is ``Uᵀ`` (``spectral``, the paper) or ``U`` (``vertex``, the released code). It is orthogonal, so that the residual
around φ need not be transformed: one product each way. A branch without a basis is left out; runs of several lengths l
share φ₂ and the order.

FLOPs: batch · (4 G² r + 4 G l r + 4 G r²). Kept for the backward pass: ``s`` and the bases, which all layers share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-5


class Spectra(NamedTuple):
    """The bases of a batch of clouds; there may be none of the whole, or none of runs.

    Attributes:
        whole: [B, G, G], eigenvectors in columns.
        local: [B, n, l, l] for every length l, those of the runs of l tokens along ``order``.
        order: [B, G], the tokens along the curve.
        inverse: [B, G], the way back.
    """

    whole: Float[Tensor, "batch tokens tokens"] | None
    local: Sequence[Float[Tensor, "batch runs run run"]]
    order: Int[Tensor, "batch tokens"] | None
    inverse: Int[Tensor, "batch tokens"] | None


class Filter(NamedTuple):
    """``LN`` and the map of φ: weight and bias of the norm, A and a."""

    gamma: Float[Tensor, "r"]
    beta: Float[Tensor, "r"]
    weight: Float[Tensor, "r r"]
    bias: Float[Tensor, "r"]


def _phi(z: Tensor, gamma: Tensor, beta: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.silu(F.linear(F.layer_norm(z, z.shape[-1:], gamma, beta, EPS), weight, bias))


def _picked(t: Tensor, order: Tensor) -> Tensor:
    return t.gather(1, order[..., None].expand_as(t))


def graph_fourier_reference(
    s: Float[Tensor, "batch all r"], spectra: Spectra, whole: Filter, local: Filter, vertex: bool = False
) -> Float[Tensor, "batch all r"]:
    """h as the formula stands."""
    tokens = _check(s, spectra)
    t = s[:, s.shape[1] - tokens :]
    added = torch.zeros_like(t)
    if spectra.whole is not None:
        m = spectra.whole.to(s.dtype)
        m = m if vertex else m.mT
        z = m @ t
        added = added + m.mT @ (z + _phi(z, *whole))
    for m in spectra.local:
        assert spectra.order is not None
        assert spectra.inverse is not None
        m = m.to(s.dtype)
        m = m if vertex else m.mT
        z = m @ _picked(t, spectra.order).view(*m.shape[:-1], -1)
        runs = m.mT @ (z + _phi(z, *local))
        added = added + _picked(runs.view_as(t), spectra.inverse)
    h = F.silu(s)
    return torch.cat([h[:, : s.shape[1] - tokens], h[:, s.shape[1] - tokens :] + added], 1)


def graph_fourier(
    s: Float[Tensor, "batch all r"], spectra: Spectra, whole: Filter, local: Filter, vertex: bool = False
) -> Float[Tensor, "batch all r"]:
    """h, with gradients for s and both filters; everything but s is computed again for them.

    Args:
        s: the tokens, those without a place in space first.
        spectra: the bases; at least one.
        whole: φ₁.
        local: φ₂.
        vertex: M = U instead of Uᵀ.

    Raises:
        ValueError: no basis, bases of another batch, or of more tokens than there are.
    """
    tokens = _check(s, spectra)
    m1, runs = None if spectra.whole is None else spectra.whole.to(s.dtype), [u.to(s.dtype) for u in spectra.local]
    return _middle(s, m1, runs, spectra.order, spectra.inverse, *whole, *local, vertex, tokens)


def _check(s: Tensor, spectra: Spectra) -> int:
    given = [basis for basis in (spectra.whole, spectra.order) if basis is not None]
    if not given or bool(spectra.local) != (spectra.order is not None):
        raise ValueError("a graph Fourier filter needs a basis of the whole, or of the runs with their order")
    for basis in given:
        if basis.shape[0] != s.shape[0] or basis.shape[1] > s.shape[1]:
            raise ValueError(
                f"the spectral bases are those of {basis.shape[0]} clouds of {basis.shape[1]} tokens; found "
                f"{s.shape[0]} sequences of {s.shape[1]}"
            )
    return given[0].shape[1]


def _branch(m: Tensor, t: Tensor, gamma: Tensor, beta: Tensor, weight: Tensor, bias: Tensor, vertex: bool):
    """M t, its norm, the norm's statistics and the filter before its activation."""
    z = (m if vertex else m.mT) @ t
    u, mean, rstd = torch.native_layer_norm(z, z.shape[-1:], gamma, beta, EPS)
    return z, u, mean, rstd, F.linear(u, weight, bias)


@torch.library.custom_op("peft_kernels::graph_fourier", mutates_args=())
def _middle(
    s: Tensor,
    m1: Tensor | None,
    runs: list[Tensor],
    order: Tensor | None,
    inverse: Tensor | None,
    gamma1: Tensor,
    beta1: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    gamma2: Tensor,
    beta2: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    vertex: bool,
    tokens: int,
) -> Tensor:
    h = F.silu(s)
    t, points = s[:, s.shape[1] - tokens :], h[:, s.shape[1] - tokens :]
    if m1 is not None:
        v = _branch(m1, t, gamma1, beta1, weight1, bias1, vertex)[-1]
        points += t
        points.baddbmm_(m1.mT if vertex else m1, F.silu(v))
    for m in runs:
        assert order is not None
        assert inverse is not None
        v = _branch(m, _picked(t, order).view(*m.shape[:-1], -1), gamma2, beta2, weight2, bias2, vertex)[-1]
        back = (m.mT if vertex else m) @ F.silu(v)
        points += t
        points += _picked(back.view_as(t), inverse)
    return h


@_middle.register_fake
def _(s, *_):
    return torch.empty_like(s)


@torch.library.custom_op("peft_kernels::graph_fourier_backward", mutates_args=())
def _backward(
    g: Tensor,
    s: Tensor,
    m1: Tensor | None,
    runs: list[Tensor],
    order: Tensor | None,
    inverse: Tensor | None,
    gamma1: Tensor,
    beta1: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    gamma2: Tensor,
    beta2: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    vertex: bool,
    tokens: int,
) -> list[Tensor]:
    gs = torch.ops.aten.silu_backward(g, s)
    t, gt = s[:, s.shape[1] - tokens :], g[:, s.shape[1] - tokens :]
    into, found = gs[:, s.shape[1] - tokens :], []
    for bases, own in (((m1,), (gamma1, beta1, weight1, bias1)), (runs, (gamma2, beta2, weight2, bias2))):
        total = [torch.zeros_like(parameter) for parameter in own]
        for m in bases:
            if m is None:
                continue
            signal, gradient = t, gt
            if m is not m1:
                assert order is not None
                assert inverse is not None
                signal, gradient = (_picked(value, order).view(*m.shape[:-1], -1) for value in (t, gt))
            back, gradients = _branch_backward(m, signal, gradient, *own, vertex)
            into += gt
            into += back if m is m1 else _picked(back.view_as(t), inverse)  # type: ignore[arg-type]
            total = [one + other for one, other in zip(total, gradients, strict=True)]
        found += total
    return [gs, *found]


def _branch_backward(m, t, g, gamma, beta, weight, bias, vertex):
    z, u, mean, rstd, v = _branch(m, t, gamma, beta, weight, bias, vertex)
    gv = torch.ops.aten.silu_backward((m if vertex else m.mT) @ g, v)
    rows = gv.flatten(0, -2)
    gz, ggamma, gbeta = torch.ops.aten.native_layer_norm_backward(
        gv @ weight, z, z.shape[-1:], mean, rstd, gamma, beta, [True, True, True]
    )
    back = (m.mT if vertex else m) @ gz
    return back, [ggamma, gbeta, rows.mT @ u.flatten(0, -2), rows.sum(0)]


@_backward.register_fake
def _(g, s, m1, runs, order, inverse, *own):
    return [torch.empty_like(s), *(torch.empty_like(parameter) for parameter in own[:8])]


def _context(ctx, inputs, output):
    s, m1, runs, *rest, ctx.vertex, ctx.tokens = inputs
    ctx.runs = len(runs)
    ctx.save_for_backward(s, m1, *rest, *runs)


def _gradients(ctx, g):
    s, m1, *rest = ctx.saved_tensors
    own, runs = rest[: len(rest) - ctx.runs], rest[len(rest) - ctx.runs :]
    gs, *found = _backward(g.contiguous(), s, m1, runs, *own, ctx.vertex, ctx.tokens)
    return gs, None, [None] * ctx.runs, None, None, *found, None, None


_middle.register_autograd(_gradients, setup_context=_context)
