"""Operations on clouds: sampling, neighbours, orders, and graph spectra."""

from __future__ import annotations

import torch
from torch import Tensor

from peft_kernels.ops import farthest_points, graph_basis, grouped
from peft_kernels.ops.graph_basis import (
    graph_laplacian,
    graph_weights,
    least_distance,
    pair_distances,
    released_weights,
    spectrum,
)
from peft_kernels.ops.point_sets import (
    farthest_points_reference,
    gathered,
    greedy_order,
    inverse_order,
    nearest_neighbours_reference,
    z_order,
    z_order_key,
)
from vision_peft.models.point_patches import sine_positions

from ..comparison import Tolerance
from ..harness import Results
from ..vectors import Vectors


def exact(name: str, dtype: torch.dtype) -> Tolerance:
    """Equal; sines 2e-5, which are in float32."""
    return Tolerance(2e-5 if "sine" in name else 0.0, absolute=True)


def basis_tolerance(name: str, dtype: torch.dtype) -> Tolerance:
    """Projectors 1e-9, eigenvalues 1e-11, all else 1e-12."""
    return Tolerance(1e-9 if "projector" in name else 1e-11 if "eigenvalues" in name else 1e-12, absolute=True)


def gemm_tolerance(name: str, dtype: torch.dtype) -> Tolerance:
    """Eigenvalues 1e-9, least distances 1e-12, Laplacians 1e-6."""
    return Tolerance(1e-9 if "eigenvalues" in name else 1e-12 if "distance" in name else 1e-6, absolute=True)


def fps_knn(case: Vectors) -> Results:
    """Farthest points with and without the rule of the origin, and patches around them."""
    points, options = case["input.points"], case.options
    count, k, threshold = options["num_group"], options["group_size"], options["origin_threshold"]

    def found(sample, neighbours) -> dict[str, Tensor]:
        index = sample(points, count, threshold)
        center = gathered(points, index)
        near = neighbours(points, center, k)
        return {
            "output.fps_index": index,
            "output.fps_index_no_origin_rule": sample(points, count, None),
            "output.center": center,
            "output.knn_index": near,
            "output.neighborhood": gathered(points, near) - center[:, :, None],
        }

    fused = found(farthest_points, lambda *values: grouped(*values)[1])
    fused["output.neighborhood"] = grouped(points, fused["output.center"], k)[0]
    return {"reference": found(farthest_points_reference, nearest_neighbours_reference), "fused": fused}


def token_orders(case: Vectors) -> Results:
    """Orders along curves, and PointGPT's positions."""
    centers, options = case["input.center"], case.options
    order = z_order(centers, options["grid_per_unit"])
    return {
        "orders": {
            "output.zorder_key": z_order_key(centers, options["grid_per_unit"]),
            "output.zorder_index": order,
            "output.zorder_inverse": inverse_order(order),
            "output.greedy_order": greedy_order(centers),
            "output.sine_position_embedding": sine_positions(centers.float(), options["sine_dim"]),
        }
    }


def graph_basis_case(case: Vectors) -> Results:
    """Weights, Laplacians and what does not depend on the choice of eigenvectors."""
    centers, eps = case["input.center"], case.options["degree_eps"]
    distance = pair_distances(centers)
    found, of_basis = {"output.distance": distance}, {}
    for scope in ("batch", "cloud"):
        least = least_distance(distance, scope)
        weight = graph_weights(distance, least)
        laplacian = graph_laplacian(weight, degree_eps=eps)
        found |= {f"output.{scope}.min_distance": least, f"output.{scope}.weight": weight}
        found[f"output.{scope}.laplacian"] = laplacian
        found[f"output.{scope}.combinatorial_laplacian"] = graph_laplacian(weight, "combinatorial")
        found[f"output.{scope}.eigenvalues"] = spectrum(laplacian)[0]
        basis = graph_basis(centers, scope=scope, degree_eps=eps)
        of_basis[f"output.{scope}.eigenvalues"] = (basis.mT @ laplacian @ basis).diagonal(dim1=-2, dim2=-1)
        for k in case.options["projector_ranks"]:
            of_basis[f"output.{scope}.projector_first_{k}"] = basis[..., :k] @ basis[..., :k].mT
    return {"formulas": found, "graph_basis": of_basis}


def graph_gemm_distance(case: Vectors) -> Results:
    """The spectrum of rounded distances, as released, and that of exact ones."""
    rounded = case["input.gemm_distance"]
    released = graph_laplacian(released_weights(rounded))
    distance = pair_distances(case["input.center"].double())
    least = least_distance(distance)
    exact = graph_laplacian(graph_weights(distance, least))
    return {
        "formulas": {
            "output.gemm.min_distance": least_distance(rounded, "batch"),
            "output.gemm.laplacian": released,
            "output.gemm.eigenvalues": spectrum(released.double())[0],
            "output.exact.min_distance_per_cloud": least,
            "output.exact.laplacian_per_cloud": exact.float(),
            "output.exact.eigenvalues_per_cloud": spectrum(exact)[0],
        }
    }
