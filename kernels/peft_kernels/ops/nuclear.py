"""The nuclear norm of a sparse matrix, ``‖P‖_* = Σ σ_i``, and its subgradient ``U Vᵀ`` at the matrix's entries.

Singular values up to ``ε max(rows, columns) σ_1`` count as 0 and are left out: on their null space ``U Vᵀ`` is
arbitrary. `reference` is the singular value decomposition. `nuclear_subgradient` takes the smaller Gram matrix, which
a sparse P gives cheaply, and ``P (PᵀP)^(-1/2) = U Vᵀ`` of it at the entries alone: a well-conditioned Gram matrix by
`inverse_root`, others by eigenvectors in float64, where a Gram matrix still tells all singular values apart that
float32 does. FLOPs for n × m, n ≥ m, K entries: 2 K m (Gram), 3 to 5 m³ (root) or about 9 m³ (eigenvectors), 2 K m;
against 4 n m² + 22 m³ and more.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .inverse_root import inverse_root
from .sparse_grad.entries import SAMPLED_SHARE, compressed_rows, product_at


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
) -> tuple[Float[Tensor, " count"], Float[Tensor, ""]]:
    """The subgradient of the nuclear norm at the entries, and the norm.

    Args:
        values: of the entries, float32 or float64; all others are 0.
        index: flat, row-major places, ascending.
        shape: of the matrix.

    Raises:
        ValueError: a value is infinite or none.
    """
    if not bool(values.isfinite().all()):
        raise ValueError(
            f"the nuclear norm of a {shape[0]} × {shape[1]} matrix needs finite values; found NaN or infinity among "
            f"its {len(values)} entries: training may have diverged"
        )
    if values.dtype == torch.float64:  # a Gram matrix in float64 would lose half of its digits
        gradient = reference(values, index, shape)[0]
    else:  # on a GPU, products of float32 may be rounded to ten bits: see torch.set_float32_matmul_precision
        found = _by_gram(values, index, shape, False) if values.is_cpu else None
        gradient = (_by_gram(values.double(), index, shape, True) if found is None else found).to(values.dtype)  # type: ignore[misc]
    return gradient, values @ gradient


def _by_gram(values: Tensor, index: Tensor, shape: tuple[int, int], any_condition: bool) -> Tensor | None:
    """By the smaller Gram matrix; ``None`` for an ill-conditioned one unless told to take any."""
    turned, turned_index, order = _transposed(values, index, shape)
    wide, tall = (turned, turned_index), (values, index)
    if shape[0] < shape[1]:
        wide, tall, shape = tall, wide, (shape[1], shape[0])
    matrix = _dense(*tall, shape)
    if values.is_cpu and len(index) <= SAMPLED_SHARE * matrix.numel():
        gram = compressed_rows(*wide, (shape[1], shape[0])) @ matrix
    else:
        gram = matrix.T @ matrix
    root = inverse_root(gram)
    if root is None:
        if not any_condition:
            return None
        squares, V = torch.linalg.eigh(gram)
        sigma = squares.clamp_min(0).sqrt()
        root = (V * torch.where(sigma > _negligible(sigma, torch.float32, shape), sigma.reciprocal(), 0.0)) @ V.T
    gradient = product_at(matrix.T, root, tall[1])
    return gradient if tall[0] is values else torch.empty_like(gradient).index_copy_(0, order, gradient)


def _transposed(values: Tensor, index: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """The entries of the transpose and their ascending places in it, and where they were before."""
    columns, order = (index % shape[1]).sort(stable=True)
    return values[order], columns * shape[0] + index[order] // shape[1], order


def _dense(values: Tensor, index: Tensor, shape: tuple[int, int]) -> Tensor:
    return values.new_zeros(shape[0] * shape[1]).index_add_(0, index, values).view(shape)


def _negligible(sigma: Tensor, dtype: torch.dtype, shape: tuple[int, int]) -> Tensor:
    return torch.finfo(dtype).eps * max(shape) * sigma.amax()
