"""Surfaces as patches: maps of the unit square into space, from which points are drawn in proportion to area."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Array = np.ndarray
Patch = Callable[[Array, Array], Array]  # (u, v), each [n] in [0, 1] -> points [n, 3]
Curve = Callable[[Array], Array]  # t [n] in [0, 1] -> [n, 3], or [n, 2] of radius and height

_STEP = 1e-4
_PROBES = 64  # drawn to tell a patch's area


def sample(patches: Sequence[Patch], count: int, rng: np.random.Generator) -> Array:
    """``count`` points ``[count, 3]`` of all patches together, uniform in area."""
    areas = np.array([_tried(patch, _PROBES, rng)[1].mean() for patch in patches])
    parts = rng.multinomial(count, areas / areas.sum())
    return np.concatenate([_drawn(patch, part, rng) for patch, part in zip(patches, parts, strict=True)])


def _drawn(patch: Patch, count: int, rng: np.random.Generator) -> Array:
    """Points of one patch, by rejection; where few places hold much area, these are drawn too seldom."""
    found = np.empty((0, 3))
    while len(found) < count:
        points, area = _tried(patch, 2 * (count - len(found)) + _PROBES, rng)
        found = np.concatenate([found, points[rng.random(len(area)) * np.quantile(area, 0.98) <= area]])
    return found[:count]


def _tried(patch: Patch, count: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Points at random places of the square, and how much area lies about each."""
    u, v = rng.random((2, count))
    points = patch(u, v)
    along_u, along_v = patch(u + _STEP, v) - points, patch(u, v + _STEP) - points
    return points, np.linalg.norm(np.cross(along_u, along_v), axis=1)


def revolved(profile: Curve, about: Sequence[float] = (0, 0, 0)) -> Patch:
    """A profile of radius and height, turned about the vertical axis through ``about``."""

    def patch(u: Array, v: Array) -> Array:
        radius, height = profile(v).T
        angle = 2 * np.pi * u
        return np.stack([radius * np.cos(angle), radius * np.sin(angle), height], 1) + about

    return patch


def line(*corners: tuple[float, float]) -> Curve:
    """A profile of straight pieces."""
    places = np.linspace(0, 1, len(corners))
    return lambda t: np.stack([np.interp(t, places, values) for values in zip(*corners, strict=True)], 1)


def cylinder(radius: float, low: float, high: float, about: Sequence[float] = (0, 0, 0)) -> list[Patch]:
    """A closed cylinder."""
    return [revolved(line((0, low), (radius, low), (radius, high), (0, high)), about)]


def tube(curve: Curve, radius: Callable[[Array], Array] | float) -> Patch:
    """A circle carried along a curve in space."""

    def patch(u: Array, v: Array) -> Array:
        here, ahead, behind = curve(v), curve(v + 1e-3), curve(v - 1e-3)
        tangent = ahead - behind
        tangent /= np.linalg.norm(tangent, axis=1, keepdims=True) + 1e-12
        least = np.abs(tangent).mean(0).argmin()  # one axis for the whole curve: no seam
        side = np.cross(tangent, np.eye(3)[least])
        side /= np.linalg.norm(side, axis=1, keepdims=True) + 1e-12
        other = np.cross(tangent, side)
        r = radius(v) if callable(radius) else np.full_like(v, radius)
        angle = 2 * np.pi * u[:, None]
        return here + r[:, None] * (np.cos(angle) * side + np.sin(angle) * other)

    return patch


def box(size: Sequence[float] | Array, center: Sequence[float] = (0, 0, 0)) -> list[Patch]:
    """The six faces of a box."""
    half, middle = np.asarray(size, float) / 2, np.asarray(center, float)

    def face(axis: int, side: int) -> Patch:
        others = [a for a in range(3) if a != axis]

        def patch(u: Array, v: Array) -> Array:
            points = np.empty((len(u), 3))
            points[:, axis] = side
            points[:, others] = np.stack([2 * u - 1, 2 * v - 1], 1)
            return points * half + middle

        return patch

    return [face(axis, side) for axis in range(3) for side in (-1, 1)]


def height(function: Callable[[Array, Array], Array]) -> Patch:
    """The graph of a function of two coordinates in [-1, 1]."""

    def patch(u: Array, v: Array) -> Array:
        x, y = 2 * u - 1, 2 * v - 1
        return np.stack([x, y, function(x, y)], 1)

    return patch


def prism(corners: Array, low: float, high: float) -> list[Patch]:
    """A polygon ``[n, 2]``, star-shaped about the origin, between two heights."""
    closed = np.concatenate([corners, corners[:1]])
    places = np.linspace(0, 1, len(closed))

    def edge(u: Array) -> Array:
        return np.stack([np.interp(u % 1, places, closed[:, axis]) for axis in range(2)], 1)

    def side(u: Array, v: Array) -> Array:
        return np.concatenate([edge(u), (low + (high - low) * v)[:, None]], 1)

    def cap(at: float) -> Patch:
        return lambda u, v: np.concatenate([v[:, None] * edge(u), np.full((len(u), 1), at)], 1)

    return [side, cap(low), cap(high)]
