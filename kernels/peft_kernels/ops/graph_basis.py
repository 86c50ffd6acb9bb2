"""The graph Fourier basis of a cloud: eigenvectors of the Laplacian of all its points (PointGST, TPAMI 2025).

    d_ij = ‖c_i − c_j‖,  d_min = the least positive one,  W_ij = d_min / max(d_ij, d_min),  W_ii = 1
    D = diag(Σ_j W_ij),  L = I − (D + ε)^-½ W (D + ε)^-½ = U Λ Uᵀ

Distances come from coordinate differences: those that the released code has from the expanded square are dominated by
rounding errors, of which it takes d_min. Eigenvectors have the sign of their largest entry, so that the basis is a
function of the cloud and not of the linear algebra library. Nothing here has a gradient.

Cost for G points: about 9 G³ FLOPs for the eigenvectors; all the rest is of order G².
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

SCOPES = ("cloud", "batch")
LAPLACIANS = ("normalized", "combinatorial")


def pair_distances(centers: Float[Tensor, "*batch points 3"]) -> Float[Tensor, "*batch points points"]:
    """Distances of all pairs, by differences; exactly 0 on the diagonal."""
    return (centers[..., :, None, :] - centers[..., None, :, :]).square().sum(-1).sqrt()


def least_distance(distance: Float[Tensor, "batch points points"], scope: str = "cloud") -> Float[Tensor, "clouds"]:
    """The smallest positive distance: of every cloud, or one of the batch; infinite where there is none."""
    least = distance.masked_fill(distance <= 0, torch.inf).flatten(1).amin(1)
    return least if scope == "cloud" else least.amin(0, keepdim=True)


def graph_weights(
    distance: Float[Tensor, "batch points points"], least: Float[Tensor, "clouds"]
) -> Float[Tensor, "batch points points"]:
    """W of distances. Duplicates weigh 1, and so do all pairs of a cloud that is one point."""
    least = least.view(-1, 1, 1)
    weight = torch.where(torch.isfinite(least), least / torch.maximum(distance, least), torch.ones_like(distance))
    weight.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    return weight


def released_weights(distance: Float[Tensor, "batch points points"]) -> Float[Tensor, "batch points points"]:
    """W as the released code has it, ``1 / (d_ij / d_min + δ_ij)``, with what distances hold on the diagonal."""
    ratio = distance / least_distance(distance, "batch")
    ratio.diagonal(dim1=-2, dim2=-1).add_(1.0)
    return ratio.reciprocal()


def graph_laplacian(
    weight: Float[Tensor, "batch points points"], kind: str = "normalized", degree_eps: float = 1e-6
) -> Float[Tensor, "batch points points"]:
    """L of weights: symmetric normalised, or ``D − W``."""
    degree = weight.sum(-1)
    if kind == "combinatorial":
        return torch.diag_embed(degree) - weight
    root = (degree + degree_eps).rsqrt()
    laplacian = weight.mul(-root[..., :, None]).mul_(root[..., None, :])
    laplacian.diagonal(dim1=-2, dim2=-1).add_(1.0)
    return laplacian


def spectrum(
    laplacian: Float[Tensor, "*batch points points"],
) -> tuple[Float[Tensor, "*batch points"], Float[Tensor, "*batch points points"]]:
    """Eigenvalues, ascending, and eigenvectors in columns, on one thread: many threads on small matrices are a trap."""
    with _one_thread():
        values, vectors = torch.linalg.eigh(laplacian)
    return values, vectors


def canonical_signs(
    basis: Float[Tensor, "batch points vectors"], order: Int[Tensor, "batch points"] | None = None
) -> Float[Tensor, "batch points vectors"]:
    """Every vector times the sign of its entry of largest magnitude.

    Of equal magnitudes (relative 1e-6) the first in ``order`` counts; where all entries are equal, the sign of the sum.
    """
    sorted_basis = basis if order is None else basis.gather(-2, order[..., None].expand_as(basis))
    size = sorted_basis.abs()
    tied = size >= size.amax(-2, keepdim=True) * (1 - 1e-6)
    first = tied.to(torch.uint8).argmax(-2, keepdim=True)
    sign = sorted_basis.gather(-2, first).sign()
    total = sorted_basis.sum(-2, keepdim=True).sign()
    sign = torch.where(tied.all(-2, keepdim=True) & (total != 0), total, sign)
    return basis * torch.where(sign == 0, torch.ones_like(sign), sign)


@torch.no_grad()
def graph_spectrum(
    centers: Float[Tensor, "batch points 3"],
    order: Int[Tensor, "batch points"] | None = None,
    scope: str = "cloud",
    laplacian: str = "normalized",
    degree_eps: float = 1e-6,
    canonical: bool = True,
    expanded: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[Float[Tensor, "batch points"], Float[Tensor, "batch points points"]]:
    """Λ, ascending, and U of every cloud, eigenvectors in columns.

    Args:
        centers: the points.
        order: breaks ties of the signs; their own order when not given.
        scope: ``cloud``, or ``batch`` for one d_min of all clouds.
        laplacian: ``normalized`` or ``combinatorial``.
        degree_eps: ε.
        canonical: give every vector the sign of its largest entry.
        expanded: distances from the expanded square, as the released code has them: only for its checkpoints.
        dtype: to compute in, if the points are not of a wider one.

    Raises:
        ValueError: an unknown scope or Laplacian.
    """
    for name, value, known in (("scope", scope, SCOPES), ("laplacian", laplacian, LAPLACIANS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}; found {value!r}")
    with torch.autocast(centers.device.type, enabled=False):
        centers = centers.to(torch.promote_types(dtype, centers.dtype))
        if expanded:
            weight = released_weights(torch.cdist(centers, centers, compute_mode="use_mm_for_euclid_dist"))
        else:
            distance = pair_distances(centers)
            weight = graph_weights(distance, least_distance(distance, scope))
        values, basis = spectrum(graph_laplacian(weight, laplacian, degree_eps))
        return values, canonical_signs(basis, order) if canonical else basis


def graph_basis(
    centers: Float[Tensor, "batch points 3"],
    order: Int[Tensor, "batch points"] | None = None,
    *args: Any,
    **kwargs: Any,
) -> Float[Tensor, "batch points points"]:
    """U of every cloud, eigenvectors in columns, ascending by frequency; see `graph_spectrum`."""
    return graph_spectrum(centers, order, *args, **kwargs)[1]


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
