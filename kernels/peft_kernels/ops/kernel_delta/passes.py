"""Passes over the rows of a weight W0 + S: S from its slices block by block, and the slices' gradients from S's.

Blocks have the same bounds in the forward and the backward pass, so that both compute delta to the last bit and agree
on who survives; only the thresholds are handed from one to the other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from .gate import gate_, threshold
from .merge import Gradients, merge_kernel
from .spec import DeltaSlice

_BLOCK = 2**17  # entries a CPU core works on at once: with their temporaries they stay in its second-level cache
_GROUP = 768  # rows a matrix product takes at once: fewer, and it reads its other factor too often


def block_rows(in_features: int, cpu: bool) -> int:
    """Rows of delta that are computed together."""
    return max(1, _BLOCK * torch.get_num_threads() // max(in_features, 1)) if cpu else 4096


@dataclass(frozen=True)
class Group:
    """Rows of a weight that one matrix product takes, in blocks that one element-wise pass takes."""

    rows: slice
    blocks: tuple[slice, ...]

    def local(self, rows: slice) -> slice:
        """Rows counted from the group's first."""
        return slice(rows.start - self.rows.start, rows.stop - self.rows.start)


def groups_of(slices: Sequence[DeltaSlice], out_features: int, size: int) -> list[Group]:
    """Cut a weight's rows into groups, and these into blocks of at most `size`; no slice's edge cuts through one."""
    edges = sorted({0, out_features, *(r for s in slices for r in (s.rows.start, s.rows.stop))})
    step = max(1, round(_GROUP / size)) * size
    groups = [slice(i, min(i + step, high)) for low, high in pairwise(edges) for i in range(low, high, step)]
    return [Group(g, tuple(slice(i, min(i + size, g.stop)) for i in range(g.start, g.stop, size))) for g in groups]


class SlicePass:
    """One pass over the delta of one slice, by blocks of its weight's rows."""

    def __init__(self, part: DeltaSlice, t: Float[Tensor, ""] | None = None):
        self.part, self.spec = part, part.spec
        self.rows = part.rows
        self.dtype = torch.promote_types(part.A.dtype, torch.float32)
        self.t = None if t is None else t.to(self.dtype)
        self.kernel = merge_kernel(part, self.dtype)
        self.S = self.g = part.A.new_empty(0, dtype=self.dtype)

    def covers(self, group: Group) -> bool:
        """Whether the rows belong to this slice."""
        return self.rows.start <= group.rows.start and group.rows.stop <= self.rows.stop

    def scratch(self, group: Group | None = None) -> Float[Tensor, "rows in"]:
        """Room for the whole delta, or for one group of it."""
        rows = self.rows if group is None else group.rows
        return self.part.A.new_empty(rows.stop - rows.start, self.part.A.shape[1], dtype=self.dtype)

    def sweep(
        self, groups: Sequence[Group], delta: Float[Tensor, "rows in"]
    ) -> Iterator[tuple[slice, Float[Tensor, "rows in"]]]:
        """Find the threshold, then give S without its scale by blocks: the weight's rows, and a part of `delta`."""
        blocks = [rows for group in groups if self.covers(group) for rows in group.blocks]
        for rows in blocks:
            self.kernel.delta_(self._local(rows), delta[self._local(rows)])
        self.t = threshold(delta, self.spec)
        for rows in blocks:
            S = delta[self._local(rows)]
            self._room(S)
            gate_(S, self.t, self.spec, self.g)
            yield rows, S

    def sparse(self, rows: slice) -> Float[Tensor, "rows in"]:
        """S of one block, without its scale, until the next one is asked for."""
        assert self.t is not None
        shape = rows.stop - rows.start, self.part.A.shape[1]
        if self.S.shape != shape:
            self.S = self.S.new_empty(shape)
        self._room(self.S)
        self.kernel.delta_(self._local(rows), self.S)
        gate_(self.S, self.t, self.spec, self.g)
        return self.S

    def accumulate(self, rows: slice, grad: Float[Tensor, "rows in"]) -> None:
        """Take in the gradient of W0 + S on the block last given by `sparse`."""
        grad = grad.to(self.dtype)
        if self.spec.gate != "none":
            grad = torch.mul(grad, self.g, out=self.g)
        self.kernel.accumulate(self._local(rows), grad)

    def gradients(self, gain: float = 1.0) -> Gradients:
        """Gradients of A, B and the scalars, times `gain`, in their dtypes."""
        A, B, scalars = self.kernel.gradients()
        factor = self.spec.scale * gain
        if scalars is not None and self.part.scalars is not None:
            scalars = (scalars * factor).to(self.part.scalars.dtype)
        return (A * factor).to(self.part.A.dtype), (B * factor).to(self.part.B.dtype), scalars

    def _local(self, rows: slice) -> slice:
        return slice(rows.start - self.rows.start, rows.stop - self.rows.start)

    def _room(self, like: Tensor) -> None:
        if self.g.shape != like.shape:
            self.g = torch.empty_like(like, memory_format=torch.contiguous_format)
