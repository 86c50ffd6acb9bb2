"""One file of golden vectors: its tensors by role, and its options from the metadata."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

EXPECTED = re.compile(r"output\.|grad[^.]*\.|zero_init_grad\.|merged\.|folded\.|param_after\.")


class UnusableFileError(Exception):
    """A file of vectors that cannot be read, or that says not enough about itself."""


@dataclass(frozen=True)
class Vectors:
    """The contents of one file.

    Args:
        path: where it lies; files of kind ``weights`` are looked for beside it.
        method: the folder of the method, ``golden.method``.
        kind: what the file checks, ``golden.kind``.
        options: every other metadata entry, decoded from JSON where it is JSON; the entries of ``case`` among them.
        tensors: all tensors under their full names, such as ``param.A``.
    """

    path: Path
    method: str
    kind: str
    options: dict[str, Any]
    tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def below(self, role: str) -> dict[str, Tensor]:
        """The tensors named ``role.<rest>``, by ``<rest>``."""
        return {
            name.removeprefix(f"{role}."): value for name, value in self.tensors.items() if name.startswith(f"{role}.")
        }

    def expected(self, also: str | None = None) -> dict[str, Tensor]:
        """The tensors to reproduce: those of the usual roles, and names that match the expression ``also`` whole."""
        more = re.compile(also) if also else None
        return {
            name: value
            for name, value in self.tensors.items()
            if EXPECTED.match(name) or (more and more.fullmatch(name))
        }

    @property
    def dtype(self) -> torch.dtype:
        """The floating type that the case was computed in."""
        return self.tensors["input.x"].dtype


def _decoded(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def load(path: Path) -> Vectors:
    """Read one file.

    Raises:
        UnusableFileError: the file is missing, is no safetensors file, or lacks ``golden.method`` or ``golden.kind``.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise UnusableFileError(f"cannot be read: {error}") from error
    missing = [key for key in ("golden.method", "golden.kind") if key not in metadata]
    if missing:
        raise UnusableFileError(
            f"the metadata lack {' and '.join(missing)}; found {', '.join(sorted(metadata)) or 'none'}"
        )
    method, kind = metadata.pop("golden.method"), metadata.pop("golden.kind")
    options = {key: _decoded(value) for key, value in metadata.items()}
    if isinstance(options.get("case"), dict):
        options |= options.pop("case")
    if isinstance(options.get("options"), dict):
        options |= options.pop("options")
    return Vectors(path, method, kind, options, tensors)
