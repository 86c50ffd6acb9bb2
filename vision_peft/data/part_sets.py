"""ShapeNetPart (Yi et al., 2016): clouds of sixteen categories whose points carry the number of their part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from peft_kernels.data_errors import DataError, unknown
from peft_kernels.draws import draw_seed
from vision_peft.data.clouds import CloudVariation
from vision_peft.data.shapes.changes import normalised

# The numbers of the parts of every category, in the order of `synsetoffset2category.txt`.
PARTS: dict[str, range] = {
    "Airplane": range(4),
    "Bag": range(4, 6),
    "Cap": range(6, 8),
    "Car": range(8, 12),
    "Chair": range(12, 16),
    "Earphone": range(16, 19),
    "Guitar": range(19, 22),
    "Knife": range(22, 24),
    "Lamp": range(24, 28),
    "Laptop": range(28, 30),
    "Motorbike": range(30, 36),
    "Mug": range(36, 38),
    "Pistol": range(38, 41),
    "Rocket": range(41, 44),
    "Skateboard": range(44, 47),
    "Table": range(47, 50),
}
_LISTS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}


class ShapeNetPart:
    """One part (`train`, `val`, `trainval`, `test`) of ``shapenetcore_partanno_segmentation_benchmark_v0_normal``.

    Raises:
        UnknownNameError: no such part.
        DataError: a list is missing or names what is not there.
    """

    def __init__(self, root: Path, split: str) -> None:
        if split not in _LISTS:
            raise unknown("part of ShapeNetPart", split, _LISTS)
        self.root, self.classes = root, list(PARTS)
        table = _text(root / "synsetoffset2category.txt").split()
        folders = dict(zip(table[1::2], table[::2], strict=False))
        strange = sorted(set(folders.values()) - set(PARTS))
        if strange:
            raise DataError(f"{root / 'synsetoffset2category.txt'}: {strange[0]!r} is no category of ShapeNetPart")
        self.files: list[Path] = []
        labels = []
        for name in _LISTS[split]:
            listed = root / "train_test_split" / f"shuffled_{name}_file_list.json"
            for entry in _entries(listed):
                folder, _, shape = entry.rpartition("/")
                folder = folder.rpartition("/")[2]
                if folder not in folders:
                    raise DataError(f"{listed}: {entry!r} is of no category in synsetoffset2category.txt")
                self.files.append(root / folder / f"{shape}.txt")
                labels.append(self.classes.index(folders[folder]))
        self.labels = np.array(labels, dtype=np.int64)

    def cloud(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Points ``[N, 3]``, float32, in the unit sphere, and the numbers of their parts, int64 ``[N]``.

        Raises:
            DataError: the file is missing or damaged, or holds parts of another category.
        """
        path, category = self.files[index], self.classes[self.labels[index]]
        try:
            rows = np.loadtxt(path, ndmin=2)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is no readable cloud: {error}") from None
        if rows.shape[0] == 0 or rows.shape[1] != 7 or not np.isfinite(rows).all():
            raise DataError(f"{path}: expected finite rows of x y z, normal, part; found {list(rows.shape)}")
        parts = rows[:, 6].astype(np.int64)
        strange = set(parts.tolist()) - set(PARTS[category])
        if strange:
            allowed = PARTS[category]
            raise DataError(f"{path}: {category} has the parts {allowed[0]} to {allowed[-1]}, found {min(strange)}")
        return normalised(rows[:, :3]), parts


class PreparedParts(Dataset):
    """Clouds with parts as the model takes them, asked for by `(epoch, index)`.

    ``points`` of a cloud are drawn with replacement, as in the field's recipes; for evaluation always the same ones.
    """

    def __init__(self, clouds: Any, points: int, variation: CloudVariation | None, seed: int) -> None:
        self.clouds, self.points, self.variation, self.seed = clouds, points, variation, seed

    def __len__(self) -> int:
        return len(self.clouds.labels)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        """`points`: float32 `[points, 3]`; `parts`: int64 `[points]`; `label`, the category: int64 `[]`."""
        epoch, index = key
        points, parts = self.clouds.cloud(index)
        rng = np.random.default_rng(draw_seed(self.seed, epoch if self.variation else 0, index))
        chosen = rng.integers(len(points), size=self.points)
        points = points[chosen] if self.variation is None else self.variation(points[chosen], rng)
        return {
            "points": torch.from_numpy(np.ascontiguousarray(points, dtype=np.float32)),
            "parts": torch.from_numpy(parts[chosen]),
            "label": torch.tensor(self.clouds.labels[index]),
        }


def _entries(path: Path) -> list[str]:
    try:
        found = json.loads(_text(path))
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
        raise DataError(f"{path}: expected a list of names such as 'shape_data/02691156/1021a0914a72'")
    return found


def _text(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"ShapeNetPart is not there: {path} is missing")
    return path.read_text(encoding="utf-8")
