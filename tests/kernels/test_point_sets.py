"""Sampling and neighbours against their references, and graph spectra of clouds that have few points of their own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from peft_kernels.ops import farthest_points, graph_basis, interpolate_features, nearest_neighbours
from peft_kernels.ops.graph_basis import graph_laplacian, graph_weights, least_distance, pair_distances
from peft_kernels.ops.point_sets import (
    farthest_points_reference,
    gathered,
    inverse_order,
    nearest_neighbours_reference,
    z_order,
)


def clouds(batch: int, points: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.rand(batch, points, 3, dtype=dtype, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("batch", "points", "count"), [(1, 1, 1), (2, 7, 7), (3, 100, 33), (2, 513, 64)])
@pytest.mark.parametrize("threshold", [None, 1e-3, 0.5])
def test_farthest_points(batch: int, points: int, count: int, threshold: float | None, dtype: torch.dtype) -> None:
    x = clouds(batch, points, dtype)
    assert torch.equal(farthest_points(x, count, threshold), farthest_points_reference(x, count, threshold))


def test_points_near_the_origin_are_chosen_only_first() -> None:
    x = clouds(1, 50) + 2
    x[0, :3] = 0.01 * torch.eye(3)
    assert farthest_points(x, 40)[0, 0] == 0
    assert not {1, 2} & set(farthest_points(x, 40)[0].tolist())
    assert {1} & set(farthest_points(x, 50, None)[0].tolist())


def test_a_cloud_at_the_origin_gives_its_first_point() -> None:
    assert farthest_points(torch.zeros(1, 5, 3), 3).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("points", "centers", "k"), [(1, 1, 1), (9, 4, 9), (700, 300, 5), (1024, 40, 32), (333, 20, 7)]
)
def test_nearest_neighbours(points: int, centers: int, k: int, dtype: torch.dtype) -> None:
    x, c = clouds(2, points, dtype), clouds(2, centers, dtype, seed=1)
    found, expected = nearest_neighbours(x, c, k), nearest_neighbours_reference(x, c, k)
    of_found, of_expected = ((gathered(x, i) - c[:, :, None]).square().sum(-1) for i in (found, expected))
    torch.testing.assert_close(of_found, of_expected)
    assert (found == expected).double().mean() > 0.999


def test_a_point_is_nearest_to_itself_far_from_the_origin() -> None:
    x = clouds(1, 200) * 1e-3 + 10  # where an expanded square has no digits left
    assert torch.equal(nearest_neighbours(x, x, 1)[0, :, 0], torch.arange(200))


@pytest.mark.parametrize("count", [0, 6])
def test_more_points_than_there_are_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"at most the number of points, 5; found {count}"):
        farthest_points(clouds(1, 5), count)
    with pytest.raises(ValueError, match=f"at most the number of points, 5; found {count}"):
        nearest_neighbours(clouds(1, 5), clouds(1, 2), count)


def test_interpolation_gives_the_features_of_a_centre_at_it() -> None:
    centers, features = clouds(2, 6, torch.float64), torch.rand(2, 6, 4, dtype=torch.float64)
    torch.testing.assert_close(interpolate_features(centers, centers, features), features, rtol=0, atol=1e-5)
    same = interpolate_features(clouds(2, 9, torch.float64, 1), centers, torch.ones_like(features))
    torch.testing.assert_close(same, torch.ones_like(same))


def test_the_scale_of_a_graph_is_its_least_distance() -> None:
    x = clouds(3, 64)
    expected = [min(float((a - b).norm()) for i, a in enumerate(x[0]) for b in x[0, :i])]
    assert least_distance(pair_distances(x))[0].item() == pytest.approx(expected[0], rel=1e-5)


def test_the_lowest_frequency_is_that_of_the_degrees() -> None:
    weight = graph_weights(distance := pair_distances(clouds(2, 24, torch.float64)), least_distance(distance))
    constant = graph_laplacian(weight, degree_eps=0.0) @ weight.sum(-1, keepdim=True).sqrt()
    torch.testing.assert_close(constant, torch.zeros_like(constant), rtol=0, atol=1e-12)


def test_eigenvectors_are_computed_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, eigh, before = [], torch.linalg.eigh, torch.get_num_threads()
    monkeypatch.setattr(torch.linalg, "eigh", lambda x: seen.append(torch.get_num_threads()) or eigh(x))
    try:
        torch.set_num_threads(2)
        graph_basis(clouds(1, 8))
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


def test_z_order_by_hand() -> None:
    cells = [(0, 0, 1), (1, 0, 0), (0, 1, 0), (1, 1, 1), (0, 0, -1), (-1, 0, 0), (0, -1, 0), (0, 0, 1)]
    order = z_order(0.01 * torch.tensor([cells], dtype=torch.float64) + 0.005 * torch.tensor(cells).sign())
    assert order[0].tolist() == [0, 7, 1, 2, 3, 4, 5, 6]  # negatives last: z's, then x's, then y's; equal ones in order
    assert torch.equal(order.gather(1, inverse_order(order)), torch.arange(8)[None])


@pytest.mark.parametrize("kind", ["one point", "duplicates", "line", "ring"])
def test_degenerate_clouds_have_a_basis(kind: str) -> None:
    angle = torch.arange(12) * (2 * torch.pi / 12)
    x = {
        "one point": torch.zeros(12, 3),
        "duplicates": clouds(1, 4)[0].repeat(3, 1),
        "line": torch.arange(12.0)[:, None] * torch.tensor([1.0, 0, 0]),
        "ring": torch.stack([angle.cos(), angle.sin(), 0 * angle], -1),
    }[kind][None]
    distance = pair_distances(x)
    weight = graph_weights(distance, least_distance(distance))
    assert (weight > 0).all()
    assert (weight <= 1).all()
    basis = graph_basis(x)
    torch.testing.assert_close(basis.mT @ basis, torch.eye(12)[None], rtol=0, atol=1e-5)
    assert torch.equal(basis, graph_basis(x))


def test_canonical_signs_follow_a_permutation_of_the_points() -> None:
    x = clouds(1, 24, torch.float64)
    turn = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    one, other = graph_basis(x, z_order(x)), graph_basis(x[:, turn], z_order(x[:, turn]))
    torch.testing.assert_close(one[:, turn], other, rtol=0, atol=1e-9)
