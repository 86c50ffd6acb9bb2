"""How the rows of a weight are cut: into blocks for element-wise passes, and groups of these for matrix products."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from .spec import DeltaSlice

_BLOCK = 2**17  # entries a CPU core works on at once: with their temporaries they stay in its second-level cache
_GROUP = 768  # rows a matrix product takes at once: fewer, and it reads its other factor too often


def block_rows(in_features: int, cpu: bool) -> int:
    """Rows of delta that are computed together."""
    return max(1, _BLOCK * _threads() // max(in_features, 1)) if cpu else 4096


def _threads() -> int:
    return torch.get_num_threads()


# What torch.compiler.assume_constant_result sets; calling it would import torch._dynamo, seconds at every start.
_threads._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


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
