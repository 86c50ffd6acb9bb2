"""Clouds by name, prepared the same whoever prepares them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from peft_kernels.data_errors import DataError
from vision_peft.data.clouds import CloudVariation, PreparedClouds, open_clouds


@pytest.mark.parametrize(
    ("name", "root", "split", "message"),
    [
        ("scan", None, "train", "unknown clouds 'scan' \\(did you mean 'scans'\\?\\)"),
        ("scanobjectnn/pb_t50", Path("."), "train", "did you mean 'pb_t50_rs'"),
        ("scanobjectnn/obj_bg", Path("nowhere"), "train", "looked for nowhere/main_split/training_objectdataset.h5"),
        ("modelnet40", Path("nowhere"), "train", "modelnet40_shape_names.txt is missing"),
        ("modelnet40", None, "train", "add --data.root FOLDER"),
        ("scans", None, "val", "unknown part of the generated clouds 'val'"),
    ],
)
def test_what_is_not_there_is_told(name: str, root: Path | None, split: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_clouds(name, root, split)


VARIED = CloudVariation(scale=0.5, shift=0.2, rotate=True, jitter=0.01)


def test_variation_is_the_same_whoever_prepares_it() -> None:
    data = PreparedClouds(open_clouds("scans", None, "train", size=30, points=256), 128, VARIED, seed=5)
    keys = [(epoch, index) for epoch in range(2) for index in range(30)]
    alone = [data[key]["points"] for key in keys]
    workers = DataLoader(data, batch_size=None, sampler=keys, num_workers=1)  # type: ignore[arg-type]
    for one, other in zip(alone, workers, strict=True):
        torch.testing.assert_close(one, other["points"], rtol=0, atol=0)
    assert alone[0].shape == (128, 3)
    assert not torch.allclose(alone[0], alone[30])


def test_evaluation_takes_the_farthest_points_and_training_some_of_them() -> None:
    clouds = open_clouds("scans", None, "test", size=30, points=512)
    test = PreparedClouds(clouds, 128, None, seed=0)
    train = PreparedClouds(clouds, 128, CloudVariation(), seed=0)
    stored = {tuple(point) for point in clouds.cloud(0).tolist()}
    assert {tuple(point) for point in test[0, 0]["points"].tolist()} <= stored
    torch.testing.assert_close(test[0, 0]["points"], test[9, 0]["points"], rtol=0, atol=0)
    drawn = {tuple(point) for point in train[0, 0]["points"].tolist()}
    assert len(drawn) == 128
    assert drawn <= {tuple(point) for point in train.clouds.cloud(0).tolist()} <= stored
    assert len(train.clouds.cloud(0)) == 150


@pytest.mark.parametrize("variation", [None, CloudVariation()], ids=["evaluation", "training"])
def test_small_clouds_repeat_points(variation: CloudVariation | None) -> None:
    clouds = open_clouds("scans", None, "test", size=15, points=64)
    points = PreparedClouds(clouds, 100, variation, seed=0)[0, 0]["points"]
    assert points.shape == (100, 3)
    assert {tuple(p) for p in points.tolist()} == {tuple(p) for p in clouds.cloud(0).tolist()}


def test_rotation_keeps_heights_and_distances() -> None:
    points = np.random.default_rng(1).normal(size=(50, 3)) + 3
    turned = CloudVariation(rotate=True)(points, np.random.default_rng(0))
    np.testing.assert_allclose(turned[:, 1], points[:, 1])
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(points, axis=1))
    assert not np.allclose(turned, points)
