"""The tensors of a saved adapter: what a safetensors file says it holds, and whether that can be used.

A file without checksum cannot tell every altered byte: an altered number that stays a number is not noticed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from peft_kernels.adapter_files import AdapterError

# Types by their names in safetensors. A tensor is cast to the model's type within its group, never across.
_GROUPS = {
    "a floating-point type": ("F64", "F32", "F16", "BF16"),
    "an integer type": ("I64", "I32", "I16", "I8", "U8"),
    "BOOL": ("BOOL",),
}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as the header describes it; ``dtype`` is safetensors' name, such as ``F32``."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors and the metadata in a file's header; the numbers themselves are not read.

    Raises:
        AdapterError: the file cannot be read, is cut off, or its header does not describe it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            infos = {}
            for key in file.keys():  # noqa: SIM118 (not a dict)
                part = file.get_slice(key)
                infos[key] = TensorInfo(str(part.get_dtype()), tuple(part.get_shape()))
            return infos, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path} is not a whole safetensors file: {_what_is_wrong(path) or error}") from None


def described(tensors: Mapping[str, Tensor]) -> dict[str, TensorInfo]:
    """What a header would say of tensors; of their types only the group is told."""
    return {key: TensorInfo(_GROUPS[group_of(tensor)][0], tuple(tensor.shape)) for key, tensor in tensors.items()}


def _what_is_wrong(path: Path) -> str | None:
    """The sizes that do not fit, in words; ``None`` where safetensors' own message says it better."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if start[:2] in (b"PK", b"\x80\x02") or start[:1] == b"\x80":
                return "it is a pickle, whatever its name"
            if size < 8 or 8 + length > size:
                return f"its header should end at byte {8 + length:,}, the file has {size:,}"
            entries = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
        return f"expected {expected:,} bytes, found {size:,}" if expected != size else None
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None


def group_of(tensor: Tensor) -> str:
    """The group of types that a tensor of the model takes from a file."""
    if tensor.dtype == torch.bool:
        return "BOOL"
    return "a floating-point type" if tensor.is_floating_point() else "an integer type"


def suits(info: TensorInfo, tensor: Tensor) -> bool:
    """Whether a tensor of the file's type can be written into ``tensor``."""
    return info.dtype in _GROUPS[group_of(tensor)]


def read_tensors(
    path: Path, limits: Mapping[str, int] | None = None, ascending: Collection[str] = ()
) -> dict[str, Tensor]:
    """All tensors of a file, on the CPU, finite and in range.

    Args:
        path: a safetensors file.
        limits: for integer tensors by key, what every index must stay below; it must not be negative either.
        ascending: keys of integer tensors whose indices must ascend.

    Raises:
        AdapterError: the file is damaged, holds NaN or infinity, or an index that is out of range, twice or unsorted.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path} is not a whole safetensors file: {_what_is_wrong(path) or error}") from None
    for key, tensor in tensors.items():
        if tensor.is_floating_point():
            tensor = tensor.float() if tensor.itemsize == 1 else tensor  # float8 cannot be summed
            if torch.isfinite(tensor.sum()):  # a sum that is not can also be one that overflowed
                continue
            wrong = tensor.numel() - int(torch.isfinite(tensor).sum())
            if wrong:
                raise AdapterError(
                    f"{path}: {key!r} holds NaN or infinity in {wrong:,} of {tensor.numel():,} places: "
                    "the training that wrote it had failed, or the file is damaged"
                )
        elif limits and key in limits and tensor.numel():
            low, high = int(tensor.min()), int(tensor.max())
            if low < 0 or high >= limits[key]:
                found = low if low < 0 else high
                raise AdapterError(f"{path}: {key!r} holds the index {found}; expected 0 to {limits[key] - 1}")
            if key in ascending and len(tensor) > 1 and int((steps := tensor.long().diff()).min()) <= 0:
                at = int(steps.argmin())
                raise AdapterError(
                    f"{path}: {key!r} holds the index {int(tensor[at + 1])} after {int(tensor[at])}; they must ascend"
                )
    return tensors
