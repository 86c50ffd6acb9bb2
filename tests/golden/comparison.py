"""How a computed tensor is held against an expected one, and the line that says so."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """The largest error allowed: relative to the expected tensor's largest magnitude, or absolute.

    Where that magnitude is below ``zero``, all of the tensor is rounding, and ``zero`` is the largest error allowed.
    """

    value: float
    absolute: bool = False
    zero: float = 0.0

    def __str__(self) -> str:
        return f"{self.value:.0e}{' absolute' if self.absolute else ''}"


@dataclass(frozen=True)
class Line:
    """The verdict on one expected tensor (or on a whole file, where nothing could be computed)."""

    name: str
    ok: bool
    error: float = math.nan
    tolerance: Tolerance | None = None
    reason: str = ""

    def __str__(self) -> str:
        measured = f"{self.error:.1e}  {self.tolerance}" if self.tolerance else "-  -"
        note = f"  ({self.reason})" if self.reason else ""
        return f"{self.name}  {measured}{note}  {'ok' if self.ok else 'FAIL'}"


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected magnitude; where all of it is 0, anything else is infinitely off."""
    difference, scale = absolute_error(found, expected), expected.abs().max().item() if expected.numel() else 0.0
    if difference == 0.0:
        return 0.0
    return difference / scale if scale else math.inf


def absolute_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference; 0 for tensors without entries, infinite where one side has a NaN."""
    if not expected.numel():
        return 0.0
    difference = (found - expected).abs().max().item()
    return math.inf if math.isnan(difference) else difference


def compare(name: str, found: Tensor, expected: Tensor, tolerance: Tolerance) -> Line:
    """Hold ``found`` against ``expected``; the line shows the relative error, also where the tolerance is absolute.

    Shapes and types must agree. Integers and truth values must be equal, and NaN stands where NaN is expected.
    """
    for what in ("shape", "dtype"):
        of_found, of_expected = getattr(found, what), getattr(expected, what)
        if of_found != of_expected:
            return Line(name, False, math.inf, tolerance, f"found {what} {of_found}, expected {of_expected}")
    if not expected.dtype.is_floating_point:
        tolerance = Tolerance(0.0)
    elif expected.numel() and expected.abs().max() < tolerance.zero:
        tolerance = Tolerance(tolerance.zero, absolute=True)
    found, expected = found.detach().to(torch.float64), expected.to(torch.float64)
    missing = found.isnan() & expected.isnan()
    found, expected = (values.masked_fill(missing, 0.0) for values in (found, expected))
    relative, absolute = relative_error(found, expected), absolute_error(found, expected)
    within = (absolute if tolerance.absolute else relative) <= tolerance.value
    reason = f"{absolute:.1e} absolute" if tolerance.absolute else ""
    return Line(name, within, relative, tolerance, reason)
