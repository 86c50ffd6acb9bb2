"""What happens to a cloud of clean points: frames, deformations, cuts, noise, and one-sided views of a scene."""

from __future__ import annotations

import numpy as np

from vision_peft.data.shapes.patches import Array

_POINTS = 16  # of a scene for each cell of its depth image, so that few cells of a surface are empty
_BEHIND = 0.06  # of the scene's size: points so little behind the first one of their cell are seen too


def normalised(points: Array) -> Array:
    """Centred on the mean, the farthest point at 1; float32."""
    points = points - points.mean(0)
    return (points / max(np.linalg.norm(points, axis=1).max(), 1e-12)).astype(np.float32)


def upright(points: Array) -> Array:
    """From a vertical third axis to a vertical second one, as in ScanObjectNN and ModelNet."""
    return points[:, [0, 2, 1]] * np.array([1, 1, -1])


def lying(points: Array) -> Array:
    """The way back of `upright`."""
    return points[:, [0, 2, 1]] * np.array([1, -1, 1])


def turned(points: Array, angle: float) -> Array:
    """About the third axis."""
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])


def tumbled(points: Array, rng: np.random.Generator) -> Array:
    """Any rotation, all equally likely."""
    turn, r = np.linalg.qr(rng.normal(size=(3, 3)))
    turn = turn * np.sign(np.diag(r))
    return points @ (turn if np.linalg.det(turn) > 0 else -turn)


def deformed(points: Array, rng: np.random.Generator) -> Array:
    """Stretched along the axes, twisted about the third, tapered and bent along it."""
    points = points / np.abs(points).max() * rng.uniform(0.5, 1, 3)
    points = turned_by(points, rng.uniform(-1, 1) * points[:, 2])
    points = points * np.stack([1 + rng.uniform(-0.4, 0.4) * points[:, 2]] * 2 + [np.ones(len(points))], 1)
    return points + np.outer(points[:, 2] ** 2, [rng.uniform(-0.4, 0.4), 0, 0])


def turned_by(points: Array, angles: Array) -> Array:
    """Each point about the third axis, by its own angle."""
    c, s = np.cos(angles), np.sin(angles)
    x, y, z = points.T
    return np.stack([c * x - s * y, s * x + c * y, z], 1)


def cut(points: Array, share: float, rng: np.random.Generator) -> Array:
    """Without the ``share`` of points that lie farthest in a random direction."""
    along = points @ rng.normal(size=3)
    return points[along <= np.quantile(along, 1 - share)]


def rough(points: Array, deviation: float, rng: np.random.Generator) -> Array:
    """With noise of normal distribution, cut off at five deviations."""
    return points + np.clip(rng.normal(scale=deviation, size=points.shape), -5 * deviation, 5 * deviation)


def seen(points: Array, azimuth: float, elevation: float) -> Array:
    """Whether each point is seen from that direction: none lies before it in its cell of a depth image."""
    there = turned(points, azimuth)
    c, s = np.cos(elevation), np.sin(elevation)
    depth = -(c * there[:, 0] + s * there[:, 2])  # towards the first axis is near
    plane = np.stack([there[:, 1], c * there[:, 2] - s * there[:, 0]], 1)
    low, size = plane.min(0), np.ptp(plane, axis=0).max() + 1e-9
    cells = max(1, round(np.sqrt(len(points) / _POINTS)))
    row, column = np.minimum((plane - low) / size * cells, cells - 1).astype(int).T
    cell = row * cells + column
    first = np.full(cells**2, np.inf)
    np.minimum.at(first, cell, depth)
    return depth <= first[cell] + _BEHIND * size


def resampled(points: Array, count: int, rng: np.random.Generator) -> Array:
    """``count`` of the points, none twice as long as there are enough."""
    return points[rng.choice(len(points), count, replace=len(points) < count)]
