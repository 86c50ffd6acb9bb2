"""Data sets of clouds as they are distributed: ScanObjectNN, ModelNet40, folders of class folders, things by name.

ScanObjectNN (Uy et al., ICCV 2019) is used as stored; all others are centred on the mean and scaled into the unit
sphere.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from peft_kernels.data_errors import DataError, unknown
from vision_peft.data.cloud_files import ENDINGS, checked, read_cloud
from vision_peft.data.folder import ClassFolders
from vision_peft.data.shapes import Instances
from vision_peft.data.shapes.changes import normalised

SCANOBJECTNN = {
    "obj_bg": ("main_split", "_objectdataset.h5"),
    "obj_only": ("main_split_nobg", "_objectdataset.h5"),
    "pb_t50_rs": ("main_split", "_objectdataset_augmentedrot_scale75.h5"),
}
_SCAN_CLASSES = (
    *("bag", "bin", "box", "cabinet", "chair", "desk", "display", "door"),
    *("shelf", "table", "bed", "pillow", "sink", "sofa", "toilet"),
)
_PARTS = {"train": "training", "test": "test"}


class FolderClouds(ClassFolders):
    """Clouds and meshes in class folders."""

    endings = ENDINGS
    example = f"clouds in class folders (<class>/<cloud> of {', '.join(sorted(ENDINGS))})"

    def cloud(self, index: int) -> np.ndarray:
        """The cloud ``[N, 3]``, float32, in the unit sphere.

        Raises:
            DataError: it cannot be read; the message names the file.
        """
        name = str(self.names[index])
        return normalised(read_cloud(self.root / name, lambda: self.archive.read(name)))


class ScanObjectNN:
    """One part of a variant of ScanObjectNN: ``obj_bg``, ``obj_only`` or ``pb_t50_rs``.

    Raises:
        UnknownNameError: no such variant or part.
        DataError: the file is missing or is not what it should be.
    """

    def __init__(self, variant: str, root: Path, split: str) -> None:
        if variant not in SCANOBJECTNN:
            raise unknown("variant of ScanObjectNN", variant, SCANOBJECTNN)
        if split not in _PARTS:
            raise unknown("part of ScanObjectNN", split, _PARTS)
        folder, ending = SCANOBJECTNN[variant]
        name = Path(folder) / f"{_PARTS[split]}{ending}"
        places = [root / name, root / "h5_files" / name]
        self.path = next((place for place in places if place.is_file()), None)
        if self.path is None:
            raise DataError(f"ScanObjectNN is not there: looked for {', '.join(map(str, places))}")
        data, labels = _h5(self.path)
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(_SCAN_CLASSES):
            raise DataError(f"{self.path}: ScanObjectNN has the labels 0 to 14, found {labels.min()} to {labels.max()}")
        self.data, self.labels, self.classes = data, labels, list(_SCAN_CLASSES)

    def cloud(self, index: int) -> np.ndarray:
        """The cloud ``[2048, 3]``, float32, as stored."""
        return checked(self.data[index], f"{self.path}, cloud {index}").astype(np.float32)


class ModelNet40:
    """One part of ModelNet40 as text files of 10,000 points (``modelnet40_normal_resampled``).

    Raises:
        UnknownNameError: no such part.
        DataError: a list is missing or names a class that is not listed.
    """

    def __init__(self, root: Path, split: str) -> None:
        if split not in _PARTS:
            raise unknown("part of ModelNet40", split, _PARTS)
        inner = root / "modelnet40_normal_resampled"
        self.root = inner if inner.is_dir() else root
        self.classes = _lines(self.root / "modelnet40_shape_names.txt")
        self.names = _lines(self.root / f"modelnet40_{split}.txt")
        number = {name: index for index, name in enumerate(self.classes)}
        for name in self.names:
            if name.rpartition("_")[0] not in number:
                raise DataError(f"modelnet40_{split}.txt: {name!r} is of no class in modelnet40_shape_names.txt")
        self.labels = np.array([number[name.rpartition("_")[0]] for name in self.names], dtype=np.int64)

    def cloud(self, index: int) -> np.ndarray:
        """The cloud ``[10000, 3]``, float32, in the unit sphere; normals are left.

        Raises:
            DataError: its file is missing or damaged.
        """
        name = self.names[index]
        path = self.root / name.rpartition("_")[0] / f"{name}.txt"
        if not path.is_file():
            raise DataError(f"ModelNet40: {path} is missing")
        return normalised(read_cloud(path, path.read_bytes))


class StoredModelNet40:
    """One part of ModelNet40 as HDF5 files of 2,048 points (``modelnet40_ply_hdf5_2048``).

    Raises:
        UnknownNameError: no such part.
        DataError: a file is missing, is not what it should be, or has a label of no class.
    """

    def __init__(self, root: Path, split: str) -> None:
        if split not in _PARTS:
            raise unknown("part of ModelNet40", split, _PARTS)
        inner = root / "modelnet40_ply_hdf5_2048"
        root = inner if inner.is_dir() else root
        self.classes = _lines(root / "shape_names.txt")
        paths = sorted(root.glob(f"ply_data_{split}*.h5"))
        if not paths:
            raise DataError(f"ModelNet40 is not there: {root} has no ply_data_{split}*.h5")
        parts = []
        for path in paths:
            parts.append(_h5(path))
            if not set(parts[-1][1].tolist()) <= set(range(len(self.classes))):
                raise DataError(f"{path}: shape_names.txt has {len(self.classes)} classes; a label is of none of them")
        self.root, self.data = root, np.concatenate([data for data, _ in parts])
        self.labels = np.concatenate([labels for _, labels in parts])

    def cloud(self, index: int) -> np.ndarray:
        """The cloud ``[2048, 3]``, float32, in the unit sphere."""
        return normalised(checked(self.data[index], f"{self.root}, cloud {index}").astype(np.float32))


def open_instances(root: Path, split: str, size: int, points: int, seed: int) -> Instances:
    """Scan-like views of the things in an npz of clouds by name, or in a folder of one cloud or mesh a file.

    Raises:
        DataError: there are fewer than two, or one cannot be read or is a single point; the message names it.
    """
    things: dict[str, np.ndarray]
    if root.suffix == ".npz" and root.is_file():
        try:
            with np.load(root, allow_pickle=False) as stored:
                things = {name: checked(stored[name], f"{root}, {name}") for name in sorted(stored)}
        except DataError:
            raise
        except (OSError, ValueError, BadZipFile) as error:
            raise DataError(f"{root} is no readable npz of clouds: {error}") from None
    else:
        files = sorted(path for path in root.glob("*") if path.suffix.lower() in ENDINGS)
        things = {path.stem: read_cloud(path, path.read_bytes) for path in files}
    if len(things) < 2:
        wanted = "an npz with two or more clouds by name, or a folder of as many files"
        raise DataError(f"instances need {wanted}; {root} {f'has {len(things)}' if root.exists() else 'is not there'}")
    for name, thing in things.items():
        if not np.ptp(thing, axis=0).any():
            raise DataError(
                f"{root}, {name}: its {len(thing)} points are one and the same, of which there are no views"
            )
    return Instances({name: normalised(thing) for name, thing in things.items()}, split, size, points, seed)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"ModelNet40 is not there: {path} is missing")
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _h5(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        h5py: Any = importlib.import_module("h5py")
    except ImportError:
        raise DataError(f"{path} is read with h5py, which is not installed: pip install h5py") from None
    try:
        with h5py.File(path, "r") as file:
            data, labels = np.asarray(file["data"]), np.asarray(file["label"]).reshape(-1)
    except (OSError, KeyError) as error:
        raise DataError(f"{path} is no readable HDF5 file with data and label: {error}") from None
    if data.ndim != 3 or data.shape[-1] != 3 or labels.shape != data.shape[:1]:
        found = f"{list(data.shape)}, {list(labels.shape)}"
        raise DataError(f"{path}: expected data [n, points, 3] and label [n]; found {found}")
    return data, labels.astype(np.int64)
