"""Clouds that are generated from seeds: surfaces, scans of objects, views of given things."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peft_kernels.data_errors import DataError
from vision_peft.data.clouds import open_clouds
from vision_peft.data.shapes.changes import seen
from vision_peft.data.shapes.families import FAMILIES
from vision_peft.data.shapes.objects import OBJECTS
from vision_peft.data.shapes.patches import box, height, revolved, sample


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("name", ["scans", "surfaces"])
def test_generated_clouds_come_from_their_seed(name: str) -> None:
    one, again = (open_clouds(name, None, "train", size=60, points=128, seed=3) for _ in range(2))
    for index in range(60):
        cloud = one.cloud(index)
        assert (cloud.shape, cloud.dtype) == ((128, 3), np.float32)
        assert np.abs(cloud.mean(0)).max() < 1e-5
        assert np.linalg.norm(cloud, axis=1).max() == pytest.approx(1, abs=1e-5)
        np.testing.assert_array_equal(cloud, again.cloud(index))
    assert set(one.labels) == set(range(len(one.classes)))
    for other in (("train", 4), ("test", 3)):
        cloud = open_clouds(name, None, other[0], size=1, points=128, seed=other[1]).cloud(0)
        assert not np.allclose(cloud, one.cloud(0))


def test_there_are_tens_of_families_and_fifteen_objects() -> None:
    assert len(FAMILIES) >= 30
    assert len(OBJECTS) == 15


@pytest.mark.parametrize("name", [*FAMILIES, *OBJECTS])
def test_surfaces_have_points_everywhere(name: str) -> None:
    for seed in range(3):
        points = sample({**FAMILIES, **OBJECTS}[name](np.random.default_rng(seed)), 200, rng())
        assert np.isfinite(points).all()
        assert len(np.unique(points, axis=0)) == 200


def test_points_are_uniform_in_area() -> None:
    sphere = sample([revolved(lambda t: np.stack([np.sin(np.pi * t), np.cos(np.pi * t)], 1))], 4000, rng())
    np.testing.assert_allclose(np.histogram(sphere[:, 2], 4, (-1, 1))[0] / 4000, 0.25, atol=0.03)
    faces = sample(box((2, 1, 1)), 5000, rng())
    assert np.isclose(np.abs(faces[:, 0]), 1).mean() == pytest.approx(0.2, abs=0.03)  # 2 of 10 units of area


def test_a_camera_sees_the_front_of_a_box_alone() -> None:
    points = sample(box((1, 1, 1)), 3000, rng())
    front = seen(points, azimuth=0.0, elevation=0.0)
    assert front[points[:, 0] > 0.499].mean() > 0.9
    assert front[points[:, 0] < -0.499].mean() < 0.1


def test_a_wall_hides_what_stands_behind_it() -> None:
    wall = sample([height(lambda x, y: 0 * x)], 3000, rng())[:, [2, 0, 1]] + np.array((2.0, 0, 0))
    thing = rng().uniform(-0.5, 0.5, (500, 3))
    assert seen(np.concatenate([wall, thing]), 0.0, 0.0)[3000:].mean() < 0.05


MESHES = Path(__file__).parents[2].parent / "shared" / "data" / "mesh_points.npz"


def test_instances_are_views_of_given_things(tmp_path: Path) -> None:
    things: dict[str, Any] = {
        "cube": rng().uniform(-1, 1, (900, 3)),
        "rod": rng().uniform(-1, 1, (900, 3)) * (0.05, 1, 0.05),
    }
    np.savez(tmp_path / "things.npz", **things)
    (tmp_path / "folder").mkdir()
    for name, points in things.items():
        np.savetxt(tmp_path / "folder" / f"{name}.xyz", points)
    one = open_clouds("instances", tmp_path / "things.npz", "train", size=4, points=128)
    other = open_clouds("instances", tmp_path / "folder", "train", size=4, points=128)
    assert (list(one.classes), one.labels.tolist()) == (["cube", "rod"], [0, 1, 0, 1])
    for index in range(4):
        np.testing.assert_allclose(one.cloud(index), other.cloud(index), atol=1e-4)
        assert one.cloud(index).shape == (128, 3)
    assert not np.allclose(one.cloud(0), one.cloud(2))
    assert not np.allclose(
        one.cloud(0), open_clouds("instances", tmp_path / "folder", "test", size=1, points=128).cloud(0)
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one.npz", r"one\.npz has 1$"),
        ("empty", "empty has 0$"),
        ("nowhere", "nowhere is not there$"),
        ("damaged.npz", r"damaged\.npz is no readable npz of clouds"),
        ("nan.npz", r"nan\.npz, bad: 9 of 9 points hold NaN"),
        ("flat.npz", r"flat\.npz, bad: expected points \[N, 3 or more\].*found \[9, 2\]"),
        ("point.npz", r"point\.npz, bad: its 9 points are one and the same"),
    ],
)
def test_instances_of_nothing_are_refused(name: str, message: str, tmp_path: Path) -> None:
    good = rng().normal(size=(9, 3))
    bad = {"nan": good * np.nan, "flat": good[:, :2], "point": np.ones((9, 3))}
    np.savez(tmp_path / "one.npz", one=good)
    for kind, points in bad.items():
        np.savez(tmp_path / f"{kind}.npz", good=good, bad=points)
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged.npz").write_bytes(b"PK junk")
    with pytest.raises(DataError, match=message):
        open_clouds("instances", tmp_path / name, "train", size=2, points=16)


def test_views_of_a_plane_a_line_and_few_points_are_clouds(tmp_path: Path) -> None:
    points = rng().normal(size=(300, 3))
    np.savez(tmp_path / "x.npz", plane=points * (1, 1, 0), line=points * (1, 0, 0), three=points[:3])
    clouds = open_clouds("instances", tmp_path / "x.npz", "train", size=9, points=64)
    assert all(clouds.cloud(index).shape == (64, 3) for index in range(9))
    assert all(np.isfinite(clouds.cloud(index)).all() for index in range(9))


@pytest.mark.skipif(not MESHES.is_file(), reason="../shared/data/mesh_points.npz is not here")
def test_sixteen_real_models_are_told_apart_by_name() -> None:
    clouds = open_clouds("instances", MESHES, "test", size=16, points=256)
    assert len(clouds.classes) == 16
    assert "stanford-bunny" in clouds.classes
    assert all(np.isfinite(clouds.cloud(index)).all() for index in range(16))
