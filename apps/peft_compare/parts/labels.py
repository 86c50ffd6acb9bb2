"""Names beside the points of a figure, placed so that they cover neither points nor one another."""

from collections.abc import Sequence
from typing import NamedTuple

WIDE, TALL, HALF = 6.3, 13.0, 6.0  # of a letter, of a line, of the square kept free around a point
# Where a name may stand, the best place first: offset of its baseline's end and which end that is.
PLACES = (
    *((9.0, 3.5, "start"), (-9.0, 3.5, "end"), (0.0, -9.0, "middle"), (0.0, 18.0, "middle")),
    *((7.0, -7.0, "start"), (7.0, 15.0, "start"), (-7.0, -7.0, "end"), (-7.0, 15.0, "end")),
    *((9.0, -19.0, "start"), (9.0, 27.0, "start"), (-9.0, -19.0, "end"), (-9.0, 27.0, "end")),
)


class Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def shared(self, other: "Box") -> float:
        """Area that both cover."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        tall = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, wide) * max(0.0, tall)

    @property
    def area(self) -> float:
        return (self.right - self.left) * (self.bottom - self.top)


def box_of(name: str, x: float, y: float, anchor: str) -> Box:
    """The room that a name takes whose baseline is anchored at (x, y)."""
    wide = WIDE * len(name)
    left = x - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
    return Box(left, y - TALL + 3, left + wide, y + 3)


def beside(points: Sequence[tuple[str, float, float]], inside: Box) -> list[tuple[float, float, str]]:
    """For each `(name, x, y)` the place of its baseline and its anchor: the first that covers the least."""
    taken = [Box(x - HALF, y - HALF, x + HALF, y + HALF) for _, x, y in points]
    found = []
    for name, x, y in points:
        tried = []
        for order, (right, down, anchor) in enumerate(PLACES):
            box = box_of(name, x + right, y + down, anchor)
            lost = sum(map(box.shared, taken)) + box.area - box.shared(inside)
            tried.append((round(lost, 6), order, box))
        _, order, box = min(tried)
        taken.append(box)
        right, down, anchor = PLACES[order]
        found.append((x + right, y + down, anchor))
    return found
