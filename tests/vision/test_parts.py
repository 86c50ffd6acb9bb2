"""ShapeNetPart: read as it is distributed, judged by the mean IoU of parts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from peft_kernels.data_errors import DataError
from tests.runs.command import here
from vision_peft.data.clouds import CloudVariation
from vision_peft.data.part_sets import PARTS, PreparedParts, ShapeNetPart
from vision_peft.tasks.part_metrics import cloud_ious, predicted_parts

RANGES = list(PARTS.values())
FOLDERS = {"Airplane": "02691156", "Bag": "02773838", "Table": "04379243"}


def write(root: Path, count: int = 4) -> Path:
    """A ShapeNetPart of a few random clouds in three categories."""
    (root / "train_test_split").mkdir(parents=True)
    (root / "synsetoffset2category.txt").write_text("".join(f"{c}\t{f}\n" for c, f in FOLDERS.items()))
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        names = []
        for number in range(count):
            category, folder = list(FOLDERS.items())[number % 3]
            rows = rng.normal(size=(90, 7))
            rows[:, 6] = rng.choice(list(PARTS[category]), 90)
            (root / folder).mkdir(exist_ok=True)
            np.savetxt(root / folder / f"{split}{number}.txt", rows, fmt="%.6f")
            names.append(f"shape_data/{folder}/{split}{number}")
        (root / "train_test_split" / f"shuffled_{split}_file_list.json").write_text(json.dumps(names))
    return root


def test_parts_are_numbered_without_a_gap() -> None:
    assert [number for numbers in RANGES for number in numbers] == list(range(50))
    assert len(PARTS) == 16


def test_the_set_is_read_as_distributed(tmp_path: Path) -> None:
    data = ShapeNetPart(write(tmp_path), "trainval")
    assert data.labels.tolist() == [0, 1, 15, 0] * 2
    points, parts = data.cloud(2)
    assert np.linalg.norm(points, axis=1).max() == pytest.approx(1)
    assert set(parts) <= {47, 48, 49}
    one = PreparedParts(data, 60, None, seed=1)
    assert torch.equal(one[0, 3]["points"], one[7, 3]["points"])
    varied = PreparedParts(data, 60, CloudVariation(scale=0.25), seed=1)
    assert not torch.equal(varied[0, 3]["points"], varied[7, 3]["points"])
    assert varied[0, 3]["parts"].shape == (60,)


def test_one_factor_for_all_axes_keeps_the_shape() -> None:
    points = np.random.default_rng(0).normal(size=(50, 3))
    varied = CloudVariation(scale=0.25, isotropic=True)(points, np.random.default_rng(1))
    factors = varied / points
    np.testing.assert_allclose(factors, factors[0, 0])
    assert 0.8 <= factors[0, 0] <= 1.25


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("synsetoffset2category.txt", "Aeroplane 02691156", "'Aeroplane' is no category of ShapeNetPart"),
        ("train_test_split/shuffled_test_file_list.json", "[1]", "expected a list of names"),
        ("train_test_split/shuffled_test_file_list.json", "[", "is no JSON"),
        ("train_test_split/shuffled_test_file_list.json", '["shape_data/1/x"]', "'shape_data/1/x' is of no category"),
        ("02691156/test0.txt", "1 2 3 4 5 6 9\n", "Airplane has the parts 0 to 3, found 9"),
        ("02691156/test0.txt", "1 2 3\n", r"expected finite rows of x y z, normal, part; found \[1, 3\]"),
        ("02691156/test0.txt", "1 2 nan 4 5 6 1\n", "expected finite rows"),
        ("02691156/test0.txt", "one\n", "test0.txt is no readable cloud"),
    ],
)
def test_damaged_files_are_named(name: str, text: str, message: str, tmp_path: Path) -> None:
    (write(tmp_path) / name).write_text(text)
    with pytest.raises(DataError, match=message):
        ShapeNetPart(tmp_path, "test").cloud(0)


def test_only_parts_of_the_category_are_predicted() -> None:
    logits = torch.zeros(2, 3, 50)
    logits[..., 20] = 9  # a guitar's
    logits[:, 1, 3] = logits[:, 1, 5] = 1
    found = predicted_parts(logits, torch.tensor([0, 1]), RANGES)
    assert found.tolist() == [[0, 3, 0], [4, 5, 4]]


def test_ious_by_hand() -> None:
    true = torch.tensor([[0, 0, 1, 1], [4, 4, 4, 4], [4, 4, 5, 5]])
    told = torch.tensor([[0, 1, 1, 1], [4, 4, 4, 4], [5, 5, 5, 5]])
    found = cloud_ious(told, true, torch.tensor([0, 1, 1]), RANGES)
    # parts 2 and 3 of the first are in neither, and so is part 5 of the second
    assert found.tolist() == pytest.approx([(1 / 2 + 2 / 3 + 1 + 1) / 4, 1, (0 + 2 / 4) / 2])


def test_trained_by_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = write(tmp_path / "data")
    small = ("--model.num_groups", "8", "--model.group_size", "4", "--model.embed_dim", "24", "--model.depth", "2")
    small = (
        *small,
        "--model.num_heads",
        "2",
        "--model.levels",
        "[0, 1]",
        "--method.local_size",
        "4",
        "--method.r",
        "4",
    )
    words = ("--data.root", root, "--data.points", "64", "--optim.batch_size", "4", "--run.epochs", "1")
    out = tmp_path / "out"
    code, _, error = here(capsys, "train", "--recipe", "shapenetpart_pointgst", *small, *words, "--out", out)
    assert code == 0, error
    result = json.loads((out / "result.json").read_text())
    assert 0 < result["class_miou"] < 1
    assert len(list((out / "samples").glob("*.png"))) == 2  # before and after
    assert result["class_miou"] != result["instance_miou"]  # two airplanes, one of each other kind
    code, _, error = here(capsys, "train", "--recipe", "shapenetpart", *small[:10], "--out", tmp_path / "none")
    assert code != 0
    assert "add --data.root FOLDER" in error
