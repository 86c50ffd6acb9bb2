"""Clouds made up from seeds: parametric surfaces to learn from, and scan-like views of objects to tell apart.

Every cloud is a function of (seed, part, index) alone. `Scans` is made in the manner of ScanObjectNN's hardest split
(Uy et al., ICCV 2019): objects as one camera sees them, turned about the vertical, with floor, walls and what stands
beside them, partly hidden, in a box that is not centred on them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from peft_kernels.data_errors import unknown
from peft_kernels.draws import draw_seed
from vision_peft.data.shapes.changes import (
    cut,
    deformed,
    lying,
    normalised,
    resampled,
    rough,
    seen,
    tumbled,
    turned,
    upright,
)
from vision_peft.data.shapes.families import FAMILIES
from vision_peft.data.shapes.objects import OBJECTS
from vision_peft.data.shapes.patches import Array, box, sample

PARTS = {"train": 0, "test": 1}


class _Generated:
    """Clouds of classes that take turns.

    Args:
        split: `train` or `test`.
        size: number of clouds.
        points: of each.
        seed: of all.

    Raises:
        UnknownNameError: another part.
    """

    names: tuple[str, ...]

    def __init__(self, split: str, size: int, points: int, seed: int = 0) -> None:
        if split not in PARTS:
            raise unknown("part of the generated clouds", split, PARTS)
        self.part, self.points, self.seed = PARTS[split], points, seed
        self.classes = list(self.names)
        self.labels = np.arange(size, dtype=np.int64) % len(self.classes)

    def rng(self, index: int) -> np.random.Generator:
        """What the cloud at ``index`` is drawn from."""
        return np.random.default_rng(draw_seed(self.seed, self.part, index))


class Surfaces(_Generated):
    """Parametric surfaces, deformed, cut, noisy and in any position: float32 ``[points, 3]`` within the unit sphere."""

    names = tuple(FAMILIES)

    def cloud(self, index: int) -> Array:
        rng = self.rng(index)
        patches = FAMILIES[self.classes[self.labels[index]]](rng)
        points = deformed(sample(patches, 2 * self.points, rng), rng)
        if rng.random() < 0.5:
            points = cut(points, rng.uniform(0, 0.4), rng)
        points = rough(resampled(tumbled(points, rng), self.points, rng), rng.uniform(0, 0.01), rng)
        return normalised(points)


class Scans(_Generated):
    """Scan-like views of objects: float32 ``[points, 3]`` within the unit sphere, the second axis vertical."""

    names = tuple(OBJECTS)

    def cloud(self, index: int) -> Array:
        rng = self.rng(index)
        thing = sample(OBJECTS[self.classes[self.labels[index]]](rng), 4 * self.points, rng)
        return scanned(thing, self.points, rng)


class Instances(_Generated):
    """Scan-like views of given things, each a class of its own: which one is it?

    Args:
        things: clouds ``[N, 3]`` by name, the second axis vertical.
        split, size, points, seed: as for all generated clouds; the views of both parts differ, the things do not.
    """

    def __init__(self, things: Mapping[str, Array], split: str, size: int, points: int, seed: int = 0) -> None:
        self.names, self.things = tuple(things), list(things.values())
        super().__init__(split, size, points, seed)

    def cloud(self, index: int) -> Array:
        rng = self.rng(index)
        thing = lying(resampled(self.things[self.labels[index]], 4 * self.points, rng))
        return scanned(thing, self.points, rng)


def scanned(thing: Array, count: int, rng: np.random.Generator) -> Array:
    """``count`` points of one view of a thing ``[N, 3]`` whose third axis is vertical; then the second is."""
    thing = turned(thing, rng.uniform(0, 2 * np.pi))
    thing = thing * rng.uniform(0.9, 1.1, 3)
    scene = np.concatenate([thing, *_beside(thing, count, rng)])
    view = seen(scene, rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.8))
    scene = _boxed(scene[view], thing, rng)
    if rng.random() < 0.6:
        scene = cut(scene, rng.uniform(0.05, 0.3), rng)  # something stands before it
    scene = rough(resampled(scene, count, rng), 0.005 * np.ptp(thing, axis=0).max(), rng)
    return normalised(upright(scene))


def _beside(thing: Array, count: int, rng: np.random.Generator) -> list[Array]:
    """Floor, sometimes a wall, sometimes a box, about an object."""
    low, high = thing.min(0), thing.max(0)
    size = (high - low).max()
    middle = (low + high) / 2
    flat = rng.uniform(-0.8, 0.8, (count // 2, 2)) * size + middle[:2]
    found = [np.column_stack([flat, np.full(len(flat), low[2] - 0.01 * size)])] if rng.random() < 0.8 else []
    if rng.random() < 0.4:
        across, up = rng.uniform(-0.8, 0.8, count // 2), rng.uniform(0, 1.2, count // 2)
        wall = np.column_stack([np.full(len(up), -0.6), across, up]) * size
        found.append(turned(wall, rng.uniform(0, 2 * np.pi)) + np.array((*middle[:2], low[2])))
    if rng.random() < 0.5:
        block = sample(box(rng.uniform(0.2, 0.6, 3) * size), count // 2, rng)
        way = rng.uniform(0, 2 * np.pi)
        place = middle + 0.6 * size * np.array((np.cos(way), np.sin(way), 0))
        found.append(block + np.array((*place[:2], low[2] + 0.2 * size)))
    return found


def _boxed(scene: Array, thing: Array, rng: np.random.Generator) -> Array:
    """What of a scene lies in the object's box, moved by up to a quarter of its sides and made larger or smaller."""
    low, high = thing.min(0), thing.max(0)
    half = (high - low) / 2 * rng.uniform(0.85, 1.25) + 0.02 * (high - low).max()
    middle = (low + high) / 2 + rng.uniform(-0.25, 0.25, 3) * (high - low)
    inside = scene[(np.abs(scene - middle) <= half).all(1)]
    return inside if len(inside) >= 32 else scene
