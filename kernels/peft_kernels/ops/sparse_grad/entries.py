"""What the linear and the convolution operator share: the changed weight, and gradients of chosen entries alone.

Only ``dδ_k = Σ_t G[t, row_k] X[t, col_k]`` is wanted of ``GᵀX``. On a CPU sampled products pay up to some 15 % of the
entries (2 T K operations at a third of the dense rate); beyond that, and where there are none (half precision, GPUs),
the dense product is made block by block, only for blocks of rows that own entries, and gathered from.
"""

import warnings
from functools import cache

import torch
from torch import Tensor

SAMPLED_SHARE = 0.15  # measured, see kernels/benchmarks/sparse_grad.py
BLOCK_ENTRIES = 2**20  # of a dense gradient that exist at once
SAMPLED_TOKENS = 64  # at once: a sampled product turns both sides, which then stay in the cache


def changed(weight: Tensor, index: Tensor, values: Tensor, replace: bool, dtype: torch.dtype) -> Tensor:
    """A copy of the weight with its entries changed, computed in the wider of both types and rounded once."""
    wide = torch.promote_types(weight.dtype, values.dtype)
    flat = torch.empty(weight.numel(), dtype=wide, device=weight.device)
    flat.view(weight.shape).copy_(weight)
    if replace:
        flat.index_copy_(0, index.long(), values.to(wide))
    else:
        flat.index_add_(0, index, values.to(wide))
    return flat.view(weight.shape).to(dtype)


def product_at(gy: Tensor, x: Tensor, index: Tensor) -> Tensor:
    """``(gyᵀ x).flatten()[index]`` for ``gy [T, out]``, ``x [T, in]`` and ascending places."""
    rows, columns = gy.shape[1], x.shape[1]
    if not len(gy) or not len(index):
        return gy.new_zeros(len(index))
    if gy.is_cpu and gy.dtype in (torch.float32, torch.float64) and len(index) <= SAMPLED_SHARE * rows * columns:
        return _sampled(gy, x, index)
    found = gy.new_empty(len(index))
    for start, stop, first, last in blocks(index, rows, columns):
        part = (gy[:, start:stop].T @ x).view(-1)
        found[first:last] = part.index_select(0, index[first:last] - start * columns)
    return found


def blocks(index: Tensor, rows: int, columns: int, multiple: int = 1) -> list[tuple[int, int, int, int]]:
    """Blocks of rows that own entries: first row, last row + 1, and the bounds of their entries in ``index``.

    Their height is a multiple of ``multiple``. On a GPU there is one block: to ask which rows own entries would wait.
    """
    height = rows if not index.is_cpu else max(1, BLOCK_ENTRIES // (columns * multiple)) * multiple
    starts = list(range(0, rows, height))
    if len(starts) == 1:
        return [(0, rows, 0, len(index))]
    bounds = torch.searchsorted(index, torch.tensor([*starts, rows], dtype=index.dtype) * columns).tolist()
    return [
        (start, min(start + height, rows), first, last)
        for start, first, last in zip(starts, bounds, bounds[1:], strict=False)
        if last > first
    ]


def compressed_rows(values: Tensor, index: Tensor, shape: tuple[int, int]) -> Tensor:
    """The sparse matrix (CSR) with these values at flat, ascending places."""
    _expect_the_warning()
    heads = torch.searchsorted(index, torch.arange(shape[0] + 1, dtype=index.dtype, device=index.device) * shape[1])
    return torch.sparse_csr_tensor(heads, (index % shape[1]).to(heads.dtype), values, shape)


def _sampled(gy: Tensor, x: Tensor, index: Tensor) -> Tensor:
    found = compressed_rows(gy.new_zeros(len(index)), index, (gy.shape[1], x.shape[1]))
    for part, of_x in zip(gy.split(SAMPLED_TOKENS), x.split(SAMPLED_TOKENS), strict=True):
        found = torch.sparse.sampled_addmm(found, part.T, of_x)
    return found.values()


@cache
def _expect_the_warning() -> None:
    """torch says once a process that its CSR tensors are young; nobody who trains can do anything about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.empty(0, dtype=torch.long), torch.empty(0), (1, 1))
