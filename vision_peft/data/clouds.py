"""The one form in which every source hands out its clouds, from names to the torch dataset that prepares them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from peft_kernels.data_errors import UnknownNameError, unknown
from peft_kernels.draws import draw_seed
from peft_kernels.ops import farthest_points
from vision_peft.data.cloud_sets import (
    SCANOBJECTNN,
    FolderClouds,
    ModelNet40,
    ScanObjectNN,
    StoredModelNet40,
    open_instances,
)
from vision_peft.data.folder import open_part
from vision_peft.data.shapes import Scans, Surfaces
from vision_peft.data.shapes.changes import rough

_GENERATED: dict[str, type[Scans | Surfaces]] = {"scans": Scans, "surfaces": Surfaces}
_SIZES = {"train": 1500, "test": 750}  # of generated parts
_SPARE = 1200 / 1024  # training draws from so many times the points it takes, as in the field's recipes


class Clouds(Protocol):
    """Labelled clouds, by position."""

    @property
    def classes(self) -> Sequence[str]: ...

    @property
    def labels(self) -> np.ndarray:
        """Class index of every cloud, int64 `[N]`."""
        ...

    def cloud(self, index: int) -> np.ndarray:
        """float32 `[points, 3]`, the second axis vertical."""
        ...


@dataclass(frozen=True)
class CloudVariation:
    """How training clouds vary. All zeros: they do not.

    Attributes:
        scale: each axis by a factor of up to `1 + scale`, or down to its inverse; 0.5 in Point-MAE's recipe.
        shift: each axis by up to this; 0.2 there.
        rotate: any angle about the vertical axis.
        jitter: deviation of noise on every point, cut off at five times that; 0.01 is usual.
        isotropic: one factor for all axes.
    """

    scale: float = 0.0
    shift: float = 0.0
    rotate: bool = False
    jitter: float = 0.0
    isotropic: bool = False

    def __call__(self, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The points ``[N, 3]``, varied."""
        if self.scale:
            points = points * rng.uniform(1 / (1 + self.scale), 1 + self.scale, 1 if self.isotropic else 3)
        if self.shift:
            points = points + rng.uniform(-self.shift, self.shift, 3)
        if self.rotate:
            c, s = np.cos(angle := rng.uniform(0, 2 * np.pi)), np.sin(angle)
            points = points @ np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
        if self.jitter:
            points = rough(points, self.jitter, rng)
        return points


def open_clouds(
    name: str,
    root: Path | None,
    split: str,
    classes: list[str] | None = None,
    size: int | None = None,
    points: int = 1024,
    seed: int = 0,
) -> Clouds:
    """The clouds of one part.

    Args:
        name: `scans` or `surfaces` (generated), `instances` (generated views of the clouds or meshes at `root`),
            `modelnet40` (text files), `modelnet40_h5`, `scanobjectnn/pb_t50_rs` (`obj_bg`, `obj_only`), or `folder`
            (class folders of clouds or meshes at `root`).
        root: where the data lie.
        split: the part's name.
        classes: the class names in order, where another part has already fixed them.
        size: of a generated part.
        points: of a generated cloud.
        seed: of generated clouds.

    Raises:
        DataError: unknown name (with the nearest known one), missing part, unreadable file.
    """
    count = _SIZES.get(split, 0) if size is None else size
    if name in _GENERATED:
        return _GENERATED[name](split, count, points, seed)
    family, _, variant = name.partition("/")
    if family not in ("modelnet40", "modelnet40_h5", "scanobjectnn", "folder", "instances"):
        scanned = (f"scanobjectnn/{variant}" for variant in SCANOBJECTNN)
        raise unknown("clouds", name, [*_GENERATED, "instances", "modelnet40", "modelnet40_h5", *scanned, "folder"])
    if root is None:
        raise UnknownNameError(f"{name} is read from a folder, but none is given: add --data.root FOLDER")
    if family == "instances":
        return open_instances(root, split, count, points, seed)
    if family == "modelnet40":
        return ModelNet40(root, split)
    if family == "modelnet40_h5":
        return StoredModelNet40(root, split)
    if family == "scanobjectnn":
        return ScanObjectNN(variant, root, split)
    return open_part(FolderClouds, root, split, classes)


class Sampled:
    """Clouds read once and kept as their farthest points in order: the first n of them are the n farthest ones.

    A cloud of fewer points is kept whole.
    """

    def __init__(self, clouds: Clouds, points: int, told: Callable[[int, int], None] | None = None) -> None:
        self.classes, self.labels = clouds.classes, clouds.labels
        self.arrays: list[np.ndarray] = []
        for index in range(len(self.labels)):
            cloud = clouds.cloud(index)
            if len(cloud) > points:
                cloud = cloud[farthest_points(torch.from_numpy(cloud)[None], points)[0].numpy()]
            self.arrays.append(cloud)
            if told is not None:
                told(index + 1, len(self.labels))

    def cloud(self, index: int) -> np.ndarray:
        return self.arrays[index]


class PreparedClouds(Dataset):
    """Clouds as the model takes them, asked for by `(epoch, index)`.

    What is random in a cloud is drawn from `(seed, epoch, index)` alone. Training takes a random ``points`` of the
    1,200 / 1,024 times as many farthest ones, in random order; evaluation the ``points`` farthest. Where a cloud has
    fewer, some are repeated.

    Args:
        clouds: the source; read once.
        points: of each cloud.
        variation: how they vary; null for evaluation.
        seed: of all that is random.
        told: hears of how many are read.
    """

    def __init__(
        self,
        clouds: Clouds,
        points: int,
        variation: CloudVariation | None,
        seed: int,
        told: Callable[[int, int], None] | None = None,
    ) -> None:
        self.clouds = Sampled(clouds, points if variation is None else round(_SPARE * points), told)
        self.points, self.variation, self.seed = points, variation, seed

    def __len__(self) -> int:
        return len(self.clouds.labels)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        """`points`: float32 `[points, 3]`; `label`: int64 `[]`."""
        epoch, index = key
        cloud = self.clouds.cloud(index)
        if self.variation is None:
            cloud = np.resize(cloud, (self.points, 3))  # repeats where there are fewer
        else:
            rng = np.random.default_rng(draw_seed(self.seed, epoch, index))
            chosen = rng.permutation(len(cloud))[: self.points]
            chosen = np.concatenate([chosen, rng.integers(len(cloud), size=self.points - len(chosen))])
            cloud = self.variation(cloud[chosen], rng)
        points = torch.from_numpy(np.ascontiguousarray(cloud, dtype=np.float32))
        return {"points": points, "label": torch.tensor(self.clouds.labels[index])}
