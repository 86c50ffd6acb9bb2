"""One file with one cloud: arrays and text by numpy, meshes by trimesh, laser scans by laspy, each where installed."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from peft_kernels.data_errors import DataError

_MESHES = (".ply", ".off", ".obj", ".stl")
_SCANS = (".las", ".laz")
_TEXT = (".txt", ".xyz", ".csv", ".pts")
_ARRAYS = (".npy", ".npz")
ENDINGS = frozenset((*_ARRAYS, *_TEXT, *_MESHES, *_SCANS))


def read_cloud(path: Path, read: Callable[[], bytes], surface_points: int = 8192) -> np.ndarray:
    """The points ``[N, 3]`` of a file, as stored, in float64; further columns (normals, colours) are left.

    Args:
        path: the file's name, for its ending and for messages.
        read: gives its bytes.
        surface_points: how many are drawn from a mesh with faces, in proportion to area, the same each time.

    Raises:
        DataError: no such format, a reader that is not installed, a damaged file, or no finite points in three
            dimensions; the message names the file.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise DataError(f"{path}: clouds are read from {', '.join(sorted(ENDINGS))}, found {ending or 'no ending'}")
    data = io.BytesIO(read())
    try:
        if ending in _ARRAYS:
            points = _array(data)
        elif ending in _TEXT:
            points = _text(data)
        elif ending in _SCANS:
            points = np.asarray(_reader("laspy", path).read(data).xyz)
        else:
            points = _mesh(_reader("trimesh", path), data, ending, surface_points)
    except DataError:
        raise
    except Exception as error:  # what readers raise on damaged files has no common type
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is no readable cloud: {reason}") from None
    return checked(points, str(path))


def checked(points: np.ndarray, where: str) -> np.ndarray:
    """The first three columns, in float64.

    Raises:
        DataError: they are not at least one finite point.
    """
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] < 3 or len(points) == 0 or points.dtype.kind not in "fiu":
        raise DataError(f"{where}: expected points [N, 3 or more], at least one; found {list(points.shape)}")
    points = points[:, :3].astype(np.float64)
    bad = int((~np.isfinite(points).all(1)).sum())
    if bad:
        raise DataError(f"{where}: {bad} of {len(points)} points hold NaN or infinity")
    return points


def _array(data: io.BytesIO) -> np.ndarray:
    found: Any = np.load(data, allow_pickle=False)
    if isinstance(found, np.ndarray):
        return found
    names = [name for name in ("points", "xyz", "data") if name in found] or list(found)
    return found[names[0]]


def _text(data: io.BytesIO) -> np.ndarray:
    text = data.getvalue().decode("utf-8").replace(",", " ")
    return np.loadtxt(io.StringIO(text), ndmin=2) if text.strip() else np.empty((0, 3))


def _mesh(trimesh: Any, data: io.BytesIO, ending: str, count: int) -> np.ndarray:
    found = trimesh.load(data, file_type=ending[1:])
    if hasattr(found, "to_geometry"):  # several parts
        found = found.to_geometry()
    if len(getattr(found, "faces", ())):
        return np.asarray(trimesh.sample.sample_surface(found, count, seed=0)[0])
    return np.asarray(found.vertices)


def _reader(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise DataError(f"{path} is read with {name}, which is not installed: pip install {name}") from None
