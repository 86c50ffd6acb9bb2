"""Fifteen classes of objects with random proportions, put together from patches: what `scans` asks to tell apart."""

from __future__ import annotations

import numpy as np

from vision_peft.data.shapes.families import Family
from vision_peft.data.shapes.patches import Patch, box, cylinder, line, revolved, tube


def _all(*parts: list[Patch]) -> list[Patch]:
    return [patch for part in parts for patch in part]


def _legs(rng: np.random.Generator, wide: float, deep: float, tall: float) -> list[Patch]:
    thick, inset = rng.uniform(0.04, 0.1), rng.uniform(0.75, 0.95)
    corners = [(sx * wide * inset / 2, sy * deep * inset / 2) for sx in (-1, 1) for sy in (-1, 1)]
    if rng.random() < 0.5:
        return _all(*(box((thick, thick, tall), (x, y, tall / 2)) for x, y in corners))
    return _all(*(cylinder(thick / 2, 0, tall, (x, y, 0)) for x, y in corners))


def _table(rng: np.random.Generator) -> list[Patch]:
    wide, deep, tall = rng.uniform(1, 2), rng.uniform(0.7, 1.2), rng.uniform(0.6, 1)
    return _all(_legs(rng, wide, deep, tall), box((wide, deep, rng.uniform(0.04, 0.12)), (0, 0, tall)))


def _chair(rng: np.random.Generator) -> list[Patch]:
    wide, deep, tall, back = (
        rng.uniform(0.45, 0.65),
        rng.uniform(0.45, 0.65),
        rng.uniform(0.35, 0.55),
        rng.uniform(0.4, 0.8),
    )
    seat = box((wide, deep, 0.06), (0, 0, tall))
    return _all(_legs(rng, wide, deep, tall), seat, box((wide, 0.06, back), (0, -deep / 2, tall + back / 2)))


def _stool(rng: np.random.Generator) -> list[Patch]:
    tall, wide = rng.uniform(0.4, 0.8), rng.uniform(0.3, 0.5)
    return _all(_legs(rng, wide, wide, tall), cylinder(wide * 0.7, tall, tall + rng.uniform(0.04, 0.1)))


def _shelf(rng: np.random.Generator) -> list[Patch]:
    wide, deep, tall, count = (
        rng.uniform(0.6, 1.2),
        rng.uniform(0.25, 0.4),
        rng.uniform(1.2, 2),
        int(rng.integers(3, 6)),
    )
    boards = [box((wide, deep, 0.04), (0, 0, z)) for z in np.linspace(0, tall, count)]
    return _all(*boards, *(box((0.04, deep, tall), (x, 0, tall / 2)) for x in (-wide / 2, wide / 2)))


def _bed(rng: np.random.Generator) -> list[Patch]:
    wide, deep, tall = rng.uniform(0.8, 1.8), rng.uniform(1.8, 2.2), rng.uniform(0.3, 0.5)
    head = box((wide, 0.08, rng.uniform(0.6, 1.1)), (0, -deep / 2, 0.45))
    pillow = box((wide * 0.8, 0.35, 0.12), (0, -deep / 2 + 0.25, tall + 0.06))
    return _all(box((wide, deep, tall), (0, 0, tall / 2)), head, pillow)


def _sofa(rng: np.random.Generator) -> list[Patch]:
    wide, deep, tall = rng.uniform(1.2, 2.2), rng.uniform(0.7, 0.9), rng.uniform(0.35, 0.5)
    arms = [box((0.18, deep, tall + 0.25), (x, 0, (tall + 0.25) / 2)) for x in (-wide / 2, wide / 2)]
    back = box((wide, 0.2, rng.uniform(0.7, 1)), (0, -deep / 2, 0.45))
    return _all(box((wide, deep, tall), (0, 0, tall / 2)), back, *arms)


def _desk(rng: np.random.Generator) -> list[Patch]:
    wide, deep, tall = rng.uniform(1, 1.8), rng.uniform(0.5, 0.8), rng.uniform(0.65, 0.8)
    drawers = box((0.4, deep * 0.95, tall * 0.9), (wide / 2 - 0.22, 0, tall * 0.45))
    side = box((0.05, deep * 0.95, tall), (-wide / 2 + 0.05, 0, tall / 2))
    return _all(box((wide, deep, 0.06), (0, 0, tall)), drawers, side)


def _door(rng: np.random.Generator) -> list[Patch]:
    wide, tall = rng.uniform(0.7, 1), rng.uniform(1.8, 2.2)
    posts = [box((0.08, 0.14, tall), (x, 0, tall / 2)) for x in (-wide / 2, wide / 2)]
    knob = tube(lambda t: np.outer(t, (0, 0.12, 0)) + np.array((wide * 0.4, 0, tall * 0.48)), 0.03)
    leaf = box((wide, 0.05, tall), (0, rng.uniform(-0.04, 0.04), tall / 2))
    return _all(leaf, *posts, box((wide, 0.14, 0.08), (0, 0, tall)), [knob])


def _lamp(rng: np.random.Generator) -> list[Patch]:
    tall, wide = rng.uniform(0.8, 1.6), rng.uniform(0.2, 0.4)
    shade = revolved(line((wide, tall), (wide * rng.uniform(0.3, 0.8), tall + rng.uniform(0.2, 0.45))))
    return _all(cylinder(0.03, 0, tall + 0.1), cylinder(wide * rng.uniform(0.6, 1), 0, 0.05), [shade])


def _bin(rng: np.random.Generator) -> list[Patch]:
    wide, tall, lean = rng.uniform(0.2, 0.35), rng.uniform(0.4, 0.8), rng.uniform(0.65, 0.95)
    return [revolved(line((0, 0), (wide * lean, 0), (wide, tall), (wide * 1.06, tall), (wide * 1.06, tall - 0.03)))]


def _bottle(rng: np.random.Generator) -> list[Patch]:
    wide, body, neck = rng.uniform(0.15, 0.35), rng.uniform(0.4, 0.8), rng.uniform(0.15, 0.4)
    thin, top = wide * rng.uniform(0.25, 0.5), body + neck
    return [revolved(line((0, 0), (wide, 0), (wide, body), (thin, body + 0.4 * neck), (thin, top), (0, top)))]


def _mug(rng: np.random.Generator) -> list[Patch]:
    wide, tall, loop = rng.uniform(0.25, 0.4), rng.uniform(0.5, 0.8), rng.uniform(0.13, 0.22)

    def handle(t: np.ndarray) -> np.ndarray:
        angle = np.pi * (t - 0.5)
        return np.stack([wide + loop * np.cos(angle), 0 * t, tall / 2 + 1.4 * loop * np.sin(angle)], 1)

    return [revolved(line((0, 0), (wide, 0), (wide, tall))), tube(handle, rng.uniform(0.03, 0.06))]


def _screen(rng: np.random.Generator) -> list[Patch]:
    wide, tall, lift = rng.uniform(0.7, 1.3), rng.uniform(0.45, 0.75), rng.uniform(0.15, 0.35)
    foot = box((rng.uniform(0.3, 0.5), 0.25, 0.03))
    return _all(box((wide, 0.05, tall), (0, 0, lift + tall / 2)), cylinder(0.04, 0, lift, (0, 0, 0)), foot)


def _sink(rng: np.random.Generator) -> list[Patch]:
    wide, deep, inner = rng.uniform(0.5, 0.8), rng.uniform(0.4, 0.6), rng.uniform(0.6, 0.85)
    bowl = revolved(lambda t: np.stack([inner * deep / 2 * np.sin(t * 1.55), -0.2 * np.cos(t * 1.55)], 1))
    tap = tube(lambda t: np.stack([0 * t, -deep / 2 + 0.2 * t, 0.3 * np.sin(np.pi * (0.15 + 0.8 * t))], 1), 0.03)
    sides = box((wide, deep, 0.25), (0, 0, -0.13))
    return _all([sides[i] for i in (0, 1, 2, 3)], [bowl, tap])


OBJECTS: dict[str, Family] = {
    "bed": _bed,
    "bin": _bin,
    "bottle": _bottle,
    "chair": _chair,
    "desk": _desk,
    "door": _door,
    "lamp": _lamp,
    "mug": _mug,
    "screen": _screen,
    "shelf": _shelf,
    "sink": _sink,
    "sofa": _sofa,
    "stool": _stool,
    "table": _table,
    "box": lambda rng: box(rng.uniform(0.3, 0.9, 3)),
}
