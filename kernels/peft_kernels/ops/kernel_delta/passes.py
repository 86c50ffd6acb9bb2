"""Passes over the rows of a weight W0 + S: S from its slices block by block, and the slices' gradients from S's.

Blocks have the same bounds in the forward and the backward pass, so that both compute delta to the last bit and agree
on who survives; only the thresholds are handed from one to the other.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from .gate import gate_, threshold
from .merge import Gradients, merge_kernel
from .spec import DeltaSlice


def block_rows(in_features: int, cpu: bool) -> int:
    """Rows of a block: some 512 KiB of float32 on a CPU core, so that a block and its temporaries stay in its cache."""
    if not cpu:
        return 4096
    return max(64, min(256, 2**17 // max(in_features, 1))) * torch.get_num_threads()


class SlicePass:
    """One pass over the delta of one slice, by blocks of its weight's rows."""

    def __init__(self, part: DeltaSlice, t: Float[Tensor, ""] | None = None):
        self.part, self.spec, self.t = part, part.spec, t
        self.dtype = torch.promote_types(part.A.dtype, torch.float32)
        self.kernel = merge_kernel(part, self.dtype)

    def _local(self, rows: slice) -> slice:
        return slice(rows.start - self.spec.start, rows.stop - self.spec.start)

    def covers(self, rows: slice) -> bool:
        """Whether the rows belong to this slice; a block lies inside or outside of it, never across its edge."""
        return self.part.rows.start <= rows.start and rows.stop <= self.part.rows.stop

    def sweep(self, blocks: Sequence[slice]) -> Iterator[tuple[slice, Float[Tensor, "rows in"]]]:
        """Find the threshold, then give the slice's blocks with S, without its scale. Bytes: 4 an entry."""
        mine = [rows for rows in blocks if self.covers(rows)]
        delta = self.part.A.new_empty(self.part.B.shape[1], self.part.A.shape[1], dtype=self.dtype)
        for rows in mine:
            delta[self._local(rows)] = self.kernel.delta(self._local(rows))
        self.t = threshold(delta, self.spec)
        for rows in mine:
            block = delta[self._local(rows)]
            gate_(block, self.t, self.spec)
            yield rows, block

    def sparse(self, rows: slice) -> Float[Tensor, "rows in"]:
        """S of one block, without its scale; keeps what `accumulate` needs."""
        assert self.t is not None
        delta = self.kernel.delta(self._local(rows), keep=True)
        self.g = gate_(delta, self.t, self.spec)
        return delta

    def accumulate(self, rows: slice, grad: Float[Tensor, "rows in"], spoil: bool = False) -> None:
        """Take in the gradient of W0 + S on the block last given out; `spoil` allows to overwrite it."""
        grad = grad.to(self.dtype)
        if self.g is not None:
            grad = torch.mul(grad, self.g, out=self.g)
        elif not spoil:
            grad = grad.clone()
        self.kernel.accumulate(self._local(rows), grad)
        self.g = None

    def gradients(self, gain: float = 1.0) -> Gradients:
        """Gradients of A, B and the scalars, times `gain`, in their dtypes."""
        A, B, scalars = (g if g is None else g * (self.spec.scale * gain) for g in self.kernel.gradients())
        assert A is not None
        assert B is not None
        if scalars is not None and self.part.scalars is not None:
            scalars = scalars.to(self.part.scalars.dtype)
        return A.to(self.part.A.dtype), B.to(self.part.B.dtype), scalars


def blocks_of(slices: Sequence[DeltaSlice], out_features: int, size: int) -> list[slice]:
    """Cut the rows of a weight into blocks of at most `size` that no slice's edge runs through."""
    edges = sorted({0, out_features, *(r for s in slices for r in (s.rows.start, s.rows.stop))})
    return list(_cut(edges, size))


def _cut(edges: list[int], size: int) -> Iterator[slice]:
    for low, high in pairwise(edges):
        for start in range(low, high, size):
            yield slice(start, min(start + size, high))
