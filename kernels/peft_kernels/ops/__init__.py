"""Pure functions of tensors, one operation a file or folder; they know nothing of PEFT."""

from .frozen import frozen_conv, frozen_linear
from .kernel_delta import DeltaSlice, DeltaSpec, delta_sparse, gated_conv, gated_linear
from .masks import keep_mask
from .nuclear import nuclear_subgradient
from .redrawn import redrawn_points
from .scaled import least_factor, scaled_linear
from .sparse_grad import sparse_conv, sparse_linear

__all__ = [
    "DeltaSlice",
    "DeltaSpec",
    "delta_sparse",
    "frozen_conv",
    "frozen_linear",
    "gated_conv",
    "gated_linear",
    "keep_mask",
    "least_factor",
    "nuclear_subgradient",
    "redrawn_points",
    "scaled_linear",
    "sparse_conv",
    "sparse_linear",
]
