"""Drawings written as text, and where they stand in a picture.

A drawing is strokes divided by `|`, in a square of 100 by 100 with the origin at the top left:

    line x y x y ...          straight from point to point
    curve x y x y ...         a smooth line through the points
    loop x y x y ...          the same, closed
    arc x y rx ry from to     of an ellipse around (x, y), in degrees clockwise from the right
"""

from dataclasses import dataclass

import numpy as np

FINER = 4  # drawn so many times as large, and made smaller afterwards


@dataclass(frozen=True)
class Place:
    """Where a drawing stands.

    Attributes:
        degrees: turned clockwise by so much, around the middle.
        scale: of its size.
        shift: right and down, in parts of the picture's side.
        mirrored: left to right.
    """

    degrees: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    mirrored: bool = False

    def put(self, points: np.ndarray) -> np.ndarray:
        """Points of a drawing, `[N, 2]`, in a square of side 1."""
        centred = (points / 100 - 0.5) * (-1 if self.mirrored else 1, 1)
        angle = np.radians(self.degrees)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        return self.scale * centred @ turn + 0.5 + np.array(self.shift)


def strokes(drawing: str) -> list[np.ndarray]:
    """Each stroke of a drawing as points `[N, 2]` that straight lines join."""
    return [_stroke(*text.split()) for text in drawing.split("|")]


def _stroke(kind: str, *numbers: str) -> np.ndarray:
    values = np.array(numbers, dtype=np.float64)
    if kind == "arc":
        x, y, width, height, begin, end = values
        angles = np.radians(np.linspace(begin, end, 48))
        return np.stack([x + width * np.cos(angles), y + height * np.sin(angles)], 1)
    points = values.reshape(-1, 2)
    return points if kind == "line" else _smooth(points, closed=kind == "loop")


def _smooth(points: np.ndarray, closed: bool, between: int = 12) -> np.ndarray:
    """A Catmull-Rom curve through the points."""
    ends = (points[-1:], points[:2]) if closed else (2 * points[:1] - points[1:2], 2 * points[-1:] - points[-2:-1])
    padded = np.concatenate([ends[0], points, ends[1]])
    t = np.linspace(0, 1, between)[:, None]
    pieces = [
        b + t * (c - a) / 2 + t**2 * (2 * a - 5 * b + 4 * c - d) / 2 + t**3 * (3 * b - a - 3 * c + d) / 2
        for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False)
    ]
    return np.concatenate(pieces)
