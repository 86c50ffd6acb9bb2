"""Operations on sets of points in space: sampling, neighbours, interpolation, orders and distances."""

from .chamfer import chamfer_distance
from .farthest import farthest_points, farthest_points_reference
from .interpolation import interpolate_features
from .neighbours import gathered, grouped, nearest_neighbours, nearest_neighbours_reference
from .orders import greedy_order, inverse_order, z_order, z_order_key
from .pixels import painted, pixel_places

__all__ = [
    "chamfer_distance",
    "farthest_points",
    "farthest_points_reference",
    "gathered",
    "greedy_order",
    "grouped",
    "interpolate_features",
    "inverse_order",
    "nearest_neighbours",
    "nearest_neighbours_reference",
    "painted",
    "pixel_places",
    "z_order",
    "z_order_key",
]
