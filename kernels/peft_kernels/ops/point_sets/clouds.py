"""What is asked of a batch of clouds before anything is computed from it."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

_IN_REGISTERS = 16384  # points of a cloud that a Triton program holds


def check_clouds(points: Tensor, what: str = "points") -> None:
    """Raise unless ``points`` are finite floating-point clouds ``[B, N, 3]`` with at least one point each.

    Raises:
        ValueError: another shape or type, no point, NaN or infinity; the message names the first bad cloud.
    """
    if points.ndim != 3 or points.shape[-1] != 3 or not points.is_floating_point():
        raise ValueError(
            f"{what} must be floating-point clouds of shape [B, N, 3]; found {list(points.shape)}, {points.dtype}"
        )
    if points.shape[1] == 0:
        raise ValueError(f"{what} must hold at least one point a cloud; found shape {list(points.shape)}")
    if points.is_meta or torch.compiler.is_compiling():
        return
    finite = torch.isfinite(points).flatten(1).all(1)
    if not finite.all():
        cloud = int((~finite).nonzero()[0])
        count = int((~torch.isfinite(points[cloud]).all(-1)).sum())
        raise ValueError(f"{what} must be finite; cloud {cloud} has {count} points with NaN or infinity")


def check_count(name: str, count: int, available: int, of: str) -> None:
    """Raise a ValueError unless ``1 <= count <= available``."""
    if not 1 <= count <= available:
        raise ValueError(f"{name} must be at least 1 and at most the number of {of}, {available}; found {count}")


def in_triton(points: Tensor) -> bool:
    """Whether the Triton kernels take these clouds ``[B, N, 3]``."""
    return points.is_cuda and points.shape[1] <= _IN_REGISTERS and find_spec("triton") is not None
