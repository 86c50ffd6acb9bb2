"""Kernelised low-rank delta with a quantile gate, as the formulas stand: the truth that `fused` is tested against.

Two sets of low-rank points, A with one row per input feature and B with one row per output feature, are merged by a
kernel into a full matrix, and a quantile of its magnitudes decides which entries survive:

    delta[i, j] = sum_p c_p || B_p[i] - A_p[j] ||,   S = delta * g(delta),   y = x (W0 + S)^T + b

SNELL: Shen et al., "Expanding Sparse Tuning for Low Memory Usage", NeurIPS 2024, arXiv 2411.01800.
SNELLA: Shen et al., "Kernelized Sparse Fine-Tuning with Bi-level Parameter Competition", 2025, arXiv 2510.24037.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .spec import DISTANCE_KERNELS, DeltaSlice, DeltaSpec, temperature


class KernelDelta(NamedTuple):
    """A delta before and after its gate."""

    delta: Float[Tensor, "out in"]
    threshold: Float[Tensor, ""] | None
    delta_sparse: Float[Tensor, "out in"]


def kernel_delta(
    A: Float[Tensor, "parts in rank"],
    B: Float[Tensor, "parts out rank"],
    spec: DeltaSpec,
    scalars: Float[Tensor, "count"] | None = None,
) -> KernelDelta:
    """Delta, threshold and gated delta `delta * g * scale`; gradients flow through delta, never through g or t.

    The threshold of the `magnitude` and `hard` gates is the interpolated quantile, as in the official code.
    Cost: (2 r + 12) N FLOPs and a sort of the N = out * in magnitudes; some 10 tensors of N entries are kept.
    """
    delta = merge(A, B, spec, scalars)
    gate, threshold = gate_of(delta.detach(), spec)
    return KernelDelta(delta, threshold, delta * gate * spec.scale)


def merge(
    A: Float[Tensor, "parts in rank"],
    B: Float[Tensor, "parts out rank"],
    spec: DeltaSpec,
    scalars: Float[Tensor, "count"] | None = None,
) -> Float[Tensor, "out in"]:
    """Merge the two point sets by the kernel of `spec` (SNELL, Eq. 4 and Table A6; `mix`: SNELLA)."""
    if spec.kernel in DISTANCE_KERNELS:
        M = sum((c * distance(b, a, spec.p) for c, b, a in zip(spec.coeff, B, A, strict=True)), B.new_zeros(()))
        return M if spec.kernel == "piecewise_linear" else mix(M, scalars)
    a, b = A.sum(0), B.sum(0)  # one part
    if spec.kernel == "linear":
        return b @ a.T
    assert scalars is not None
    alpha, beta, gamma = scalars.unbind()
    if spec.kernel == "sigmoid":
        return alpha / (1 + torch.exp(-beta * (b @ a.T))) + gamma
    return alpha * torch.exp(-beta * (b[:, None] - a[None]).square().sum(-1)) + gamma


def mix(M: Float[Tensor, "out in"], scalars: Float[Tensor, "3"] | None) -> Float[Tensor, "out in"]:
    """M + alpha * softmax over the out axis of M / gamma + beta; a temperature nearer to 0 than 1e-4 counts as 1e-4."""
    assert scalars is not None
    alpha, gamma, beta = scalars.unbind()
    gamma = gamma + (temperature(gamma) - gamma).detach()  # so that it can come back from there
    return M + alpha * torch.softmax(M / gamma, 0) + beta


def distance(b: Float[Tensor, "out rank"], a: Float[Tensor, "in rank"], p: float) -> Float[Tensor, "out in"]:
    """Minkowski distance of order p between every two rows; the gradient at distance 0 is 0."""
    powers = (b[:, None] - a[None]).abs().pow(p).sum(-1)
    apart = powers > 0
    return torch.where(apart, torch.where(apart, powers, 1.0).pow(1 / p), 0.0)


def gate_of(
    delta: Float[Tensor, "out in"], spec: DeltaSpec
) -> tuple[Float[Tensor, "out in"], Float[Tensor, ""] | None]:
    """Gate g and threshold t of a detached delta."""
    if spec.gate == "none":
        return torch.ones_like(delta), None
    magnitude = delta.abs()
    ordered = magnitude.flatten().sort().values
    index = spec.threshold_index(delta.numel())
    if spec.gate == "soft":
        threshold = ordered.new_zeros(()) if index is None else ordered[index]
        return (magnitude - threshold).clamp_min(0), threshold
    assert index is not None
    between = spec.sparsity * (delta.numel() - 1) - index
    threshold = torch.lerp(ordered[index], ordered[min(index + 1, delta.numel() - 1)], max(between, 0.0))
    survives = magnitude > ordered[index]
    return survives * magnitude if spec.gate == "magnitude" else survives.to(delta.dtype), threshold


def delta_weight(slices: Sequence[DeltaSlice], out_features: int, in_features: int) -> Float[Tensor, "out in"]:
    """Sum of the gated deltas of all slices, each on its rows."""
    first = slices[0].A
    total = first.new_zeros(out_features, in_features)
    for A, B, spec, scalars in slices:
        sparse = kernel_delta(A, B, spec, scalars).delta_sparse
        total = total + F.pad(sparse, (0, 0, spec.start, out_features - spec.start - B.shape[1]))
    return total


def gated_linear(
    x: Float[Tensor, "*batch in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, "out"] | None,
    slices: Sequence[DeltaSlice],
) -> Float[Tensor, "*batch out"]:
    """y = x (W0 + S)^T + b. Cost for T rows of x: 6 T N FLOPs forward and backward, and what `kernel_delta` keeps."""
    return F.linear(x, weight + delta_weight(slices, *weight.shape), bias)
