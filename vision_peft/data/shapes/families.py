"""Tens of families of parametric surfaces, each with random proportions: what `point_mini` is pretrained on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vision_peft.data.shapes.patches import (
    Array,
    Curve,
    Patch,
    box,
    cylinder,
    height,
    line,
    prism,
    revolved,
    tube,
)

Family = Callable[[np.random.Generator], list[Patch]]


def _turning(profile: Callable[[np.random.Generator], Curve]) -> Family:
    return lambda rng: [revolved(profile(rng))]


def _arc(start: float, end: float, flat: float = 1.0) -> Curve:
    """A profile along a circle between two heights of angle."""

    def curve(t: Array) -> Array:
        angle = start + (end - start) * t
        return np.stack([np.cos(angle), flat * np.sin(angle)], 1)

    return curve


def _wavy(rng: np.random.Generator) -> Curve:
    waves, phase, depth = rng.uniform(1, 4), rng.uniform(0, 6), rng.uniform(0.1, 0.35)
    return lambda t: np.stack([0.55 + depth * np.sin(2 * np.pi * waves * t + phase), 2 * t - 1], 1)


def _bulging(power: Callable[[np.random.Generator], float]) -> Callable[[np.random.Generator], Curve]:
    def profile(rng: np.random.Generator) -> Curve:
        p, waist, size = power(rng), rng.uniform(0.1, 0.4), rng.uniform(0.3, 0.8)
        return lambda t: np.stack([waist + size * np.abs(2 * t - 1) ** p, 2 * t - 1], 1)

    return profile


def _ring(rng: np.random.Generator, turns: float = 1.0) -> Curve:
    del rng
    return lambda t: np.stack([np.cos(2 * np.pi * turns * t), np.sin(2 * np.pi * turns * t), 0 * t], 1)


def _torus(rng: np.random.Generator) -> list[Patch]:
    return [tube(_ring(rng), rng.uniform(0.15, 0.45))]


def _arch(rng: np.random.Generator) -> list[Patch]:
    return [tube(_ring(rng, rng.uniform(0.3, 0.7)), rng.uniform(0.12, 0.3))]


def _knot(rng: np.random.Generator) -> list[Patch]:
    p, q = [(2, 3), (3, 2), (2, 5), (3, 4)][rng.integers(4)]

    def curve(t: Array) -> Array:
        angle = 2 * np.pi * t
        r = 2 + np.cos(q * angle)
        return np.stack([r * np.cos(p * angle), r * np.sin(p * angle), np.sin(q * angle)], 1)

    return [tube(curve, rng.uniform(0.15, 0.4))]


def _coil(rng: np.random.Generator) -> list[Patch]:
    turns, rise, grow = rng.uniform(2, 6), rng.uniform(1, 3), rng.uniform(-0.6, 0.6)

    def curve(t: Array) -> Array:
        angle, r = 2 * np.pi * turns * t, 1 + grow * t
        return np.stack([r * np.cos(angle), r * np.sin(angle), rise * t], 1)

    return [tube(curve, rng.uniform(0.06, 0.18))]


def _shell(rng: np.random.Generator) -> list[Patch]:
    turns, grow, rise = rng.uniform(2, 3.5), rng.uniform(2, 3), rng.uniform(0.5, 1.5)

    def curve(t: Array) -> Array:
        angle, r = 2 * np.pi * turns * t, np.exp(grow * (t - 1))
        return np.stack([r * np.cos(angle), r * np.sin(angle), rise * (1 - r)], 1)

    return [tube(curve, lambda t: 0.4 * np.exp(grow * (t - 1)))]


def _bent(rng: np.random.Generator) -> list[Patch]:
    a, b = rng.uniform(-1.5, 1.5, (2, 3))
    return [tube(lambda t: np.outer(t, [2, 0, 0]) + np.outer(t**2, a) + np.outer(t**3, b), rng.uniform(0.1, 0.3))]


def _eight(rng: np.random.Generator) -> list[Patch]:
    lift = rng.uniform(0.2, 0.6)

    def curve(t: Array) -> Array:
        angle = 2 * np.pi * t
        return np.stack([np.sin(angle), np.sin(2 * angle) / 2, lift * np.cos(angle)], 1)

    return [tube(curve, rng.uniform(0.08, 0.2))]


def _band(twists: float) -> Family:
    def family(rng: np.random.Generator) -> list[Patch]:
        width = rng.uniform(0.25, 0.6)

        def patch(u: Array, v: Array) -> Array:
            angle, across = 2 * np.pi * u, width * (2 * v - 1)
            r = 1 + across * np.cos(twists * angle)
            return np.stack([r * np.cos(angle), r * np.sin(angle), across * np.sin(twists * angle)], 1)

        return [patch]

    return family


def _superquadric(rng: np.random.Generator) -> list[Patch]:
    first, second = rng.uniform(0.2, 2.5, 2)

    def power(x: Array, p: float) -> Array:
        return np.sign(x) * np.abs(x) ** p

    def patch(u: Array, v: Array) -> Array:
        a, b = 2 * np.pi * u, np.pi * (v - 0.5)
        ring = power(np.cos(b), first)
        return np.stack([ring * power(np.cos(a), second), ring * power(np.sin(a), second), power(np.sin(b), first)], 1)

    return [patch]


def _blob(rng: np.random.Generator) -> list[Patch]:
    waves = rng.normal(size=(5, 3)) * 2
    phase, size = rng.uniform(0, 6, 5), rng.uniform(0.05, 0.2)

    def patch(u: Array, v: Array) -> Array:
        a, b = 2 * np.pi * u, np.pi * (v - 0.5)
        way = np.stack([np.cos(b) * np.cos(a), np.cos(b) * np.sin(a), np.sin(b)], 1)
        return way * (1 + size * np.sin(way @ waves.T + phase).sum(1))[:, None]

    return [patch]


def _polygon(count: int, inner: float) -> Array:
    angle = np.arange(2 * count) * np.pi / count
    radius = np.where(np.arange(2 * count) % 2, inner, 1.0)
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


def _column(rng: np.random.Generator) -> list[Patch]:
    count = int(rng.integers(3, 7))
    return prism(_polygon(count, np.cos(np.pi / count)), 0, rng.uniform(0.3, 2.5))


def _gear(rng: np.random.Generator) -> list[Patch]:
    return prism(_polygon(int(rng.integers(4, 12)), rng.uniform(0.45, 0.8)), 0, rng.uniform(0.1, 0.8))


def _pyramid(rng: np.random.Generator) -> list[Patch]:
    count, tall = int(rng.integers(3, 7)), rng.uniform(0.6, 2)
    base = prism(_polygon(count, np.cos(np.pi / count)), 0, 1)

    def side(u: Array, v: Array) -> Array:
        return base[0](u, v) * np.stack([1 - v, 1 - v, np.full_like(v, tall)], 1)

    return [side, base[1]]


def _steps(rng: np.random.Generator) -> list[Patch]:
    count, rise = int(rng.integers(3, 6)), rng.uniform(0.15, 0.4)
    parts = [box((0.4, 1, rise * (i + 1)), (0.4 * i, 0, rise * (i + 1) / 2)) for i in range(count)]
    return [patch for part in parts for patch in part]


def _angle(rng: np.random.Generator) -> list[Patch]:
    a, b, thick, deep = rng.uniform(0.6, 2), rng.uniform(0.6, 2), rng.uniform(0.1, 0.4), rng.uniform(0.2, 1)
    return [*box((a, deep, thick), (a / 2, 0, 0)), *box((thick, deep, b), (0, 0, b / 2))]


def _tee(rng: np.random.Generator) -> list[Patch]:
    a, b, thick, deep = rng.uniform(0.8, 2), rng.uniform(0.6, 2), rng.uniform(0.1, 0.4), rng.uniform(0.2, 1)
    return [*box((a, deep, thick), (0, 0, b / 2)), *box((thick, deep, b))]


def _frame(rng: np.random.Generator) -> list[Patch]:
    a, b, thick = rng.uniform(0.8, 2), rng.uniform(0.8, 2), rng.uniform(0.1, 0.3)
    bars = [box((a, thick, thick), (0, 0, z)) for z in (-b / 2, b / 2)]
    bars += [box((thick, thick, b), (x, 0, 0)) for x in (-a / 2, a / 2)]
    return [patch for bar in bars for patch in bar]


def _heights(function: Callable[[np.random.Generator], Callable[[Array, Array], Array]]) -> Family:
    return lambda rng: [height(function(rng))]


def _curved(function: Callable[[Array, Array], Array]) -> Family:
    """A graph of random steepness."""

    def family(rng: np.random.Generator) -> list[Patch]:
        steep = rng.uniform(0.3, 1)
        return [height(lambda x, y: steep * function(x, y))]

    return family


def _ripple(rng: np.random.Generator) -> Callable[[Array, Array], Array]:
    waves, phase, size = rng.uniform(2, 6), rng.uniform(0, 6), rng.uniform(0.1, 0.3)
    return lambda x, y: size * np.cos(waves * np.hypot(x, y) + phase)


def _waves(rng: np.random.Generator) -> Callable[[Array, Array], Array]:
    a, b = rng.uniform(1, 4, 2)
    size = rng.uniform(0.1, 0.3)
    return lambda x, y: size * (np.sin(a * x) + np.cos(b * y))


def _hills(rng: np.random.Generator) -> Callable[[Array, Array], Array]:
    places, sizes = rng.uniform(-0.8, 0.8, (4, 2)), rng.uniform(-0.8, 0.8, 4)
    return lambda x, y: sum(  # type: ignore[return-value]
        s * np.exp(-8 * ((x - a) ** 2 + (y - b) ** 2)) for (a, b), s in zip(places, sizes, strict=True)
    )


FAMILIES: dict[str, Family] = {
    "sphere": _turning(lambda rng: _arc(-np.pi / 2, np.pi / 2, rng.uniform(0.4, 2))),
    "bowl": _turning(lambda rng: _arc(-np.pi / 2, rng.uniform(-0.4, 0.4), rng.uniform(0.5, 1.5))),
    "zone": _turning(lambda rng: _arc(rng.uniform(-1.2, -0.4), rng.uniform(0.4, 1.2))),
    "cylinder": lambda rng: cylinder(rng.uniform(0.2, 1), 0, rng.uniform(0.4, 2)),
    "pipe": _turning(lambda rng: line((rng.uniform(0.2, 1), 0), (rng.uniform(0.2, 1), 2))),
    "cone": _turning(lambda rng: line((0, 0), (rng.uniform(0.3, 1), 0), (0, rng.uniform(0.6, 2)))),
    "frustum": _turning(lambda rng: line((0, 0), (rng.uniform(0.5, 1), 0), (rng.uniform(0.1, 0.5), 1), (0, 1))),
    "spindle": _turning(lambda rng: line((0, -1), (rng.uniform(0.2, 0.9), rng.uniform(-0.5, 0.5)), (0, 1))),
    "disc": _turning(lambda rng: line((rng.uniform(0, 0.6), 0), (1, rng.uniform(-0.2, 0.2)))),
    "hyperboloid": _turning(_bulging(lambda rng: rng.uniform(1.5, 3))),
    "hourglass": _turning(_bulging(lambda rng: rng.uniform(0.6, 1.1))),
    "vase": _turning(_wavy),
    "torus": _torus,
    "arch": _arch,
    "knot": _knot,
    "coil": _coil,
    "shell": _shell,
    "bent": _bent,
    "eight": _eight,
    "ribbon": _band(0.0),
    "moebius": _band(0.5),
    "twisted": _band(1.0),
    "superquadric": _superquadric,
    "blob": _blob,
    "column": _column,
    "gear": _gear,
    "pyramid": _pyramid,
    "box": lambda rng: box(rng.uniform(0.2, 1.5, 3)),
    "slab": lambda rng: box((rng.uniform(0.8, 2), rng.uniform(0.8, 2), rng.uniform(0.05, 0.2))),
    "steps": _steps,
    "angle": _angle,
    "tee": _tee,
    "frame": _frame,
    "saddle": _curved(lambda x, y: x**2 - y**2),
    "paraboloid": _curved(lambda x, y: x**2 + y**2),
    "trough": _curved(lambda x, y: np.abs(x) ** 1.5),
    "ripple": _heights(_ripple),
    "waves": _heights(_waves),
    "hills": _heights(_hills),
}
