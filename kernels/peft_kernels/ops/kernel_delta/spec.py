"""What a kernelised delta is made of: the constants of one delta, and the slice of a weight it is added to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from math import ceil, floor
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

#: Learnable scalars of each kernel, in the order in which `DeltaSlice.scalars` holds them.
KERNEL_SCALARS: dict[str, tuple[str, ...]] = {
    "piecewise_linear": (),
    "linear": (),
    "sigmoid": ("alpha", "beta", "gamma"),
    "rbf": ("alpha", "beta", "gamma"),
    "mix": ("alpha", "gamma", "beta"),
}
#: Kernels made of several distances, each with its coefficient; the others have one part.
DISTANCE_KERNELS = ("piecewise_linear", "mix")
GATES = ("none", "magnitude", "soft", "hard")


@dataclass(frozen=True)
class DeltaSpec:
    """Constants of one kernelised, gated delta.

    Args:
        sparsity: share s of entries the gate drops, in [0, 1]. An exact decimal: positions in the sorted magnitudes
            are computed in rational arithmetic, so that s = 0.29 of 101 entries is entry 29.
        gate: `magnitude` (official code: g = |delta| where |delta| > t), `soft` (SNELL Eq. 5: g = max(|delta| - t, 0)),
            `hard` (g = 1 where |delta| > t), `none` (g = 1), or `auto` (official code: `none` if s == 0, else
            `magnitude`), which is stored resolved.
        kernel: one of `KERNEL_SCALARS`.
        p: order of the Minkowski distance of `piecewise_linear` and `mix`, > 0.
        coeff: factor c_p of each part; used by `piecewise_linear` and `mix`, where its length is the number of parts.
        scale: factor on the gated delta.
        start: first row of the weight that the delta covers; it covers as many rows as B has.

    Raises:
        ValueError: a field is out of range; the message begins with its name.
    """

    sparsity: float = 0.0
    gate: str = "auto"
    kernel: str = "piecewise_linear"
    p: float = 2.0
    coeff: tuple[float, ...] = (0.1, -0.1)
    scale: float = 1.0
    start: int = 0
    code: str = field(init=False, repr=False, compare=False, default="")

    def __post_init__(self):
        if not 0.0 <= self.sparsity <= 1.0:
            raise ValueError(f"sparsity must lie in [0, 1], found {self.sparsity}")
        if self.kernel not in KERNEL_SCALARS:
            raise ValueError(f"kernel must be one of {', '.join(KERNEL_SCALARS)}, found {self.kernel!r}")
        if self.gate not in (*GATES, "auto"):
            raise ValueError(f"gate must be one of auto, {', '.join(GATES)}, found {self.gate!r}")
        if not self.p > 0.0:
            raise ValueError(f"p must be positive, found {self.p}")
        if self.start < 0:
            raise ValueError(f"start must not be negative, found {self.start}")
        gate = ("none" if self.sparsity == 0.0 else "magnitude") if self.gate == "auto" else self.gate
        object.__setattr__(self, "gate", gate)
        # A plain join of the fields, which torch.compile can follow and takes for a constant.
        coeff = ",".join([str(c) for c in self.coeff])
        code = f"{self.sparsity} {gate} {self.kernel} {self.p} {coeff} {self.scale} {self.start}"
        object.__setattr__(self, "code", code)

    def threshold_index(self, entries: int) -> int | None:
        """Position of the threshold t among the sorted magnitudes, counted from 0; None where t is 0 or not needed.

        `soft` takes the ceil(s N)-th smallest. `magnitude` and `hard` take position floor(s (N - 1)): the gate does not
        use t's value, and no magnitude lies between this one and the interpolated quantile of the official code.
        """
        share = Fraction(repr(float(self.sparsity)))
        if self.gate == "none":
            return None
        if self.gate == "soft":
            return ceil(share * entries) - 1 if share else None
        return floor(share * (entries - 1))


class DeltaSlice(NamedTuple):
    """A block of rows of a weight and the delta added to it."""

    A: Float[Tensor, "parts in rank"]
    B: Float[Tensor, "parts rows rank"]
    spec: DeltaSpec
    scalars: Float[Tensor, "count"] | None = None

    @property
    def rows(self) -> slice:
        """Rows of the weight that the delta covers."""
        return slice(self.spec.start, self.spec.start + self.B.shape[1])


def temperature(gamma: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The temperature of `mix`, kept at least 1e-4 away from 0, with its sign."""
    least = torch.full_like(gamma, 1e-4)
    return torch.where(gamma.abs() < least, torch.copysign(least, gamma), gamma)


def check_slices(slices: Sequence[DeltaSlice], out_features: int, in_features: int) -> None:
    """Compare each slice with the weight it is added to.

    Raises:
        ValueError: shapes or the number of parts or scalars do not fit; the message gives found and expected.
    """
    for A, B, spec, scalars in slices:
        names = KERNEL_SCALARS[spec.kernel]
        parts = len(spec.coeff) if spec.kernel in DISTANCE_KERNELS else 1
        if A.ndim != 3 or B.ndim != 3 or A.shape[0] != parts or B.shape[0] != parts or A.shape[2] != B.shape[2]:
            raise ValueError(
                f"A and B of kernel {spec.kernel} must be [{parts}, in, d] and [{parts}, out, d], "
                f"found {list(A.shape)} and {list(B.shape)}"
            )
        if A.shape[1] != in_features:
            raise ValueError(f"A must have {in_features} rows, one per input feature, found {A.shape[1]}")
        if spec.start + B.shape[1] > out_features:
            raise ValueError(
                f"start {spec.start} and the {B.shape[1]} rows of B go beyond the {out_features} output features"
            )
        if (0 if scalars is None else scalars.numel()) != len(names):
            found = None if scalars is None else list(scalars.shape)
            raise ValueError(f"scalars of kernel {spec.kernel} must hold {names or 'nothing'}, found {found}")


def encode(slices: Sequence[DeltaSlice]) -> str:
    """Constants of several slices as one string, the form in which a custom operator takes them."""
    return ";".join([s.spec.code for s in slices])


@lru_cache(maxsize=4096)
def decode(codes: str) -> tuple[DeltaSpec, ...]:
    """Inverse of `encode`."""
    specs = []
    for row in codes.split(";"):
        sparsity, gate, kernel, p, coeff, scale, start = row.split(" ")
        numbers = tuple(map(float, coeff.split(",")))
        specs.append(DeltaSpec(float(sparsity), gate, kernel, float(p), numbers, float(scale), int(start)))
    return tuple(specs)
