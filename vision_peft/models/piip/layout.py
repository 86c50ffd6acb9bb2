"""Which branch sees which size and is divided where; what does not go together is refused."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise

from .branches import Transformer
from .errors import check_size
from .segments import check_segments

Size = tuple[int, int]


class Layout:
    """Names, sizes and segments of a pyramid's branches.

    Args:
        views: of the branches, the widest first.
        sizes: side, or height and width, of the picture that each takes.
        names: of the branches in messages.
        n_interactions: segments that each branch is divided into.
        interaction_indexes: instead, the blocks ``[first, last]`` of each segment of each branch.

    Attributes:
        reductions: pixels a token of the last branch after each segment.

    Raises:
        ValueError: branches out of order, sizes that they cannot take, segments that do not fit.
    """

    def __init__(
        self,
        views: Sequence[Transformer],
        sizes: Sequence[int | Size],
        names: Sequence[str],
        n_interactions: int,
        interaction_indexes: Sequence[Sequence[Sequence[int]]] | None,
    ) -> None:
        if len(views) < 2 or len(views) != len(sizes):
            raise ValueError(
                f"a pyramid has two or more branches, each with its size; found {len(views)} branches and "
                f"{len(sizes)} sizes"
            )
        self.names = list(names)
        self.sizes: list[Size] = [(size, size) if isinstance(size, int) else (size[0], size[1]) for size in sizes]
        self._check(views)
        if interaction_indexes is None:
            self.segments = [v.segments(n_interactions, name) for v, name in zip(views, names, strict=True)]
        else:
            check_segments(interaction_indexes, [each.depth for each in views], self.names)
            self.segments = [[list(part) for part in own] for own in interaction_indexes]
        self.widths = [[v.widths[max(0, last)] for _, last in own] for v, own in zip(views, self.segments, strict=True)]
        self.strides = [each.strides[-1] for each in views]
        self.reductions = [views[-1].strides[max(0, last)] for _, last in self.segments[-1]]

    def _check(self, views: Sequence[Transformer]) -> None:
        widths = [each.widths[-1] for each in views]
        if any(wide < narrow for wide, narrow in pairwise(widths)):
            order = sorted(range(len(views)), key=lambda j: -widths[j])
            raise ValueError(
                f"branches go from the widest to the narrowest; found widths {widths}, and the right order is "
                f"{', '.join(f'{self.names[j]} ({widths[j]})' for j in order)}"
            )
        for each, name, size in zip(views, self.names, self.sizes, strict=True):
            check_size(name, size, each.strides[-1])
        areas = [height * width for height, width in self.sizes]
        if any(small > large for small, large in pairwise(areas)):
            warnings.warn(
                f"a wider branch takes larger pictures than a narrower one: sizes {self.sizes}; "
                "a parameter-inverted pyramid gives the largest to the last",
                stacklevel=4,
            )

    @property
    def count(self) -> int:
        """Segments of each branch."""
        return len(self.segments[0])

    def at(self, segment: int) -> list[int]:
        """Widths of all branches after this segment."""
        return [own[segment] for own in self.widths]

    def shown(self, given: Size) -> list[Size]:
        """What each branch is to see of pictures of this size, in the proportions of ``sizes``."""
        largest = self.sizes[-1]
        if given == largest:
            return self.sizes
        check_size(self.names[-1], given, self.strides[-1])
        found = [
            tuple(
                max(1, round(g * own / full / stride)) * stride
                for g, own, full in zip(given, size, largest, strict=True)
            )
            for size, stride in zip(self.sizes[:-1], self.strides, strict=False)
        ]
        return [*((height, width) for height, width in found), given]
