"""The nuclear norm of a sparse matrix, ``‖P‖_* = Σ σ_i``, and its subgradient ``U Vᵀ`` at the matrix's entries.

Singular values up to ``ε max(rows, columns) σ_1`` count as 0 and are left out: on their null space ``U Vᵀ`` is
arbitrary. `reference` is the singular value decomposition. `nuclear_subgradient` takes the smaller Gram matrix, which
a sparse P gives cheaply, and ``P (PᵀP)^(-1/2) = U Vᵀ`` of it at the entries alone: in float32 where P is well
conditioned, else in float64, where a Gram matrix still tells all singular values apart that float32 does.
FLOPs for n × m, n ≥ m, K entries: 2 K m (Gram), about 9 m³, 2 K m; against 4 n m² + 22 m³ and more.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .sparse_grad.entries import SAMPLED_SHARE, compressed_rows, product_at

WELL_CONDITIONED = 1e-2  # of the Gram matrix's eigenvalues, smallest over largest: float32 leaves five digits then


def reference(
    values: Float[Tensor, " count"], index: Int[Tensor, " count"], shape: tuple[int, int]
) -> tuple[Float[Tensor, " count"], Float[Tensor, " side"]]:
    """``(U Vᵀ).flatten()[index]`` and the singular values, descending; see `nuclear_subgradient`."""
    U, sigma, Vh = torch.linalg.svd(_dense(values, index, shape), full_matrices=False)
    kept = (sigma > _negligible(sigma, values.dtype, shape)).to(sigma.dtype)
    return ((U * kept) @ Vh).flatten()[index.long()], sigma


@torch.no_grad()
def nuclear_subgradient(
    values: Float[Tensor, " count"], index: Int[Tensor, " count"], shape: tuple[int, int]
) -> tuple[Float[Tensor, " count"], Float[Tensor, " side"]]:
    """The subgradient of the nuclear norm at the entries, and the singular values, whose sum the norm is.

    Args:
        values: of the entries, float32 or float64; all others are 0.
        index: flat, row-major places, ascending.
        shape: of the matrix.
    """
    if values.dtype == torch.float64:  # a Gram matrix in float64 would lose half of its digits
        return reference(values, index, shape)
    if values.is_cpu:
        found = _by_gram(values, index, shape, WELL_CONDITIONED)
        if found is not None:
            return found
    gradient, sigma = _by_gram(values.double(), index, shape)  # type: ignore[misc]
    return gradient.to(values.dtype), sigma.to(values.dtype)


def _by_gram(
    values: Tensor, index: Tensor, shape: tuple[int, int], conditioned: float = 0.0
) -> tuple[Tensor, Tensor] | None:
    """By the smaller Gram matrix; ``None`` where its smallest eigenvalue is below ``conditioned`` times the largest."""
    matrix, tall = _dense(values, index, shape), shape[0] >= shape[1]
    if values.is_cpu and len(index) <= SAMPLED_SHARE * matrix.numel():
        sparse = compressed_rows(values, index, shape)
        gram = sparse.t().to_sparse_csr() @ matrix if tall else sparse @ matrix.T
    else:
        gram = matrix.T @ matrix if tall else matrix @ matrix.T
    squares, V = torch.linalg.eigh(gram)
    if conditioned and not squares[0] > conditioned * squares[-1]:
        return None
    sigma = squares.clamp_min(0).sqrt()
    kept = sigma > _negligible(sigma, torch.float32, shape)
    root = (V * torch.where(kept, sigma.reciprocal(), 0.0)) @ V.T
    gradient = product_at(matrix.T, root, index) if tall else product_at(root, matrix, index)
    return gradient, sigma.flip(0)


def _dense(values: Tensor, index: Tensor, shape: tuple[int, int]) -> Tensor:
    return values.new_zeros(shape[0] * shape[1]).index_add_(0, index, values).view(shape)


def _negligible(sigma: Tensor, dtype: torch.dtype, shape: tuple[int, int]) -> Tensor:
    return torch.finfo(dtype).eps * max(shape) * sigma.amax()
