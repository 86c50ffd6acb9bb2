"""Rebuild the case of one file of vectors and compare every expected tensor."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .comparison import Line, Tolerance, compare
from .vectors import UnusableFileError, Vectors, load

Results = Mapping[str, Mapping[str, Tensor]]
"""What a rebuilt case gives: for each way to compute it (``reference``, ``merged``, ...) tensors by expected name."""


@dataclass(frozen=True)
class Kind:
    """How files of one kind are checked.

    Args:
        rebuild: computes the case. Every expected tensor must be among its results at least once; results that the
            file does not expect are left aside.
        tolerance: the error allowed for a tensor of this name and type.
        also: expression for the names of further expected tensors, beyond the usual ``output.``, ``grad.``, ...
    """

    rebuild: Callable[[Vectors], Results]
    tolerance: Callable[[str, torch.dtype], Tolerance]
    also: str | None = None


def check(path: Path, table: Mapping[tuple[str, str], Kind]) -> list[Line]:
    """One line for every tensor compared in the file; a failed line where it holds nothing to compare.

    Files of kind ``weights`` are inputs of the files beside them: they give no line.
    """
    try:
        case = load(path)
    except UnusableFileError as error:
        return [Line(path.stem, False, reason=str(error))]
    if case.kind == "weights":
        return []
    kind = table.get((case.method, case.kind))
    if kind is None:
        return [Line(path.stem, False, reason=_unknown(case, table))]
    expected = case.expected(kind.also)
    if not expected:
        return [Line(path.stem, False, reason="nothing to compare: the file has no expected tensor")]
    try:
        results = kind.rebuild(case)
    except Exception as error:  # a case that cannot be rebuilt is a failed case, whatever stopped it
        traceback.print_exc()
        return [Line(path.stem, False, reason=f"not rebuilt: {type(error).__name__}: {error}")]
    return _lines(path.stem, expected, results, kind)


def _lines(stem: str, expected: Mapping[str, Tensor], results: Results, kind: Kind) -> list[Line]:
    lines = []
    for name, value in expected.items():
        ways = {way: found[name] for way, found in results.items() if name in found}
        if not ways:
            lines.append(Line(f"{stem}: {name}", False, reason="not computed"))
        for way, found in ways.items():
            tolerance = kind.tolerance(name, value.dtype)
            lines.append(compare(f"{stem}: {name} [{way}]", found, value, tolerance))
    return lines


def _unknown(case: Vectors, table: Mapping[tuple[str, str], Kind]) -> str:
    known = [f"{method}/{kind}" for method, kind in table]
    near = difflib.get_close_matches(f"{case.method}/{case.kind}", known, n=1, cutoff=0.0)
    return f"unknown kind {case.method}/{case.kind}; the nearest known one is {near[0] if near else 'none'}"
