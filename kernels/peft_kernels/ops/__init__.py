"""Pure functions of tensors, one operation a file or folder; they know nothing of PEFT."""

from .deformable import deformable_attention
from .edges import edge_distance, edge_lines, sobel
from .frozen import frozen_conv, frozen_linear
from .frozen_mlp import frozen_mlp
from .graph_basis import graph_basis
from .graph_fourier import Filter, Spectra, graph_fourier
from .kernel_delta import DeltaSlice, DeltaSpec, delta_sparse, gated_conv, gated_linear
from .masks import keep_mask
from .nuclear import nuclear_subgradient
from .one_step import clean_from, guided, signal_powers
from .point_sets import farthest_points, grouped, interpolate_features, nearest_neighbours
from .pointwise_mlp import pointwise_mlp
from .redrawn import redrawn_points
from .scaled import least_factor, scaled_linear
from .sparse_grad import sparse_conv, sparse_linear
from .spectra import highpass, highpass_mask, radial_frequency, spectral_distance
from .structure_texture import structure_texture_distance

__all__ = [
    "DeltaSlice",
    "DeltaSpec",
    "Filter",
    "Spectra",
    "clean_from",
    "deformable_attention",
    "delta_sparse",
    "edge_distance",
    "edge_lines",
    "farthest_points",
    "frozen_conv",
    "frozen_linear",
    "frozen_mlp",
    "gated_conv",
    "gated_linear",
    "graph_basis",
    "graph_fourier",
    "grouped",
    "guided",
    "highpass",
    "highpass_mask",
    "interpolate_features",
    "keep_mask",
    "least_factor",
    "nearest_neighbours",
    "nuclear_subgradient",
    "pointwise_mlp",
    "radial_frequency",
    "redrawn_points",
    "scaled_linear",
    "signal_powers",
    "sobel",
    "sparse_conv",
    "sparse_linear",
    "spectral_distance",
    "structure_texture_distance",
]
