"""Kernelised low-rank delta with quantile-gated sparsity (SNELL, SNELLA): `reference` formulas and fused operators."""

from . import reference
from .conv import gated_conv
from .dense import delta_sparse
from .fused import gated_linear
from .spec import DISTANCE_KERNELS, KERNEL_SCALARS, DeltaSlice, DeltaSpec

__all__ = [
    "DISTANCE_KERNELS",
    "KERNEL_SCALARS",
    "DeltaSlice",
    "DeltaSpec",
    "delta_sparse",
    "gated_conv",
    "gated_linear",
    "reference",
]
