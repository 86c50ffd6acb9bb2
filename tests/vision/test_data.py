"""Pictures from every source: the right ones, in the right class, varied the same way whoever prepares them."""

from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from vision_peft.data import DataError, open_split
from vision_peft.data.pictures import Decoded, Prepared
from vision_peft.data.transforms import Variation, evaluation_transform, training_transform

CIFAR = Path(__file__).parents[3] / "shared" / "data"
SETTINGS = {
    "input_size": (3, 32, 32),
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.25, 0.25, 0.25),
    "crop_pct": 1.0,
    "crop_mode": "center",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, 5 training and 2 test pictures of each; the same as `zipped/x_train.zip` and `zipped/x_test.zip`."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 2)):
        for name in ("zebra", "ant"):
            (root / "plain" / split / name).mkdir(parents=True)
            for index in range(count):
                picture = Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8))
                picture.save(root / "plain" / split / name / f"{index}.png")
        (root / "zipped").mkdir(exist_ok=True)
        with ZipFile(root / "zipped" / f"x_{split}.zip", "w") as file:
            for path in sorted((root / "plain" / split).rglob("*.png")):
                file.write(path, path.relative_to(root / "plain"))
    return root


def test_digits_are_split_by_class_shares() -> None:
    train, test = open_split("digits", None, "train"), open_split("digits", None, "test")
    assert (len(train.labels), len(test.labels)) == (1000, 797)
    for part in (train, test):
        shares = np.bincount(part.labels, minlength=10) / len(part.labels)
        assert np.abs(shares - 0.1).max() < 0.005
    seen = {np.asarray(train.picture(index)).tobytes() for index in range(1000)}
    assert sum(np.asarray(test.picture(index)).tobytes() in seen for index in range(797)) == 0
    assert train.picture(0).size == (8, 8)


@pytest.mark.parametrize("form", ["zipped", "zipped/x_train.zip"])
def test_zips_hold_the_same_as_the_folder(form: str, folder: Path) -> None:
    for split, count in (("train", 10), ("test", 4)):
        plain, zipped = (open_split("folder", folder / name, split) for name in ("plain", form))
        assert list(plain.classes) == list(zipped.classes) == ["ant", "zebra"]
        assert plain.labels.tolist() == zipped.labels.tolist() == sorted([0, 1] * (count // 2))
        for index in range(count):
            assert np.array_equal(np.asarray(plain.picture(index)), np.asarray(zipped.picture(index)))


def test_subset_keeps_the_shares_and_follows_its_seed(folder: Path) -> None:
    few = open_split("folder", folder / "plain", "train", size=4)
    assert sorted(few.labels.tolist()) == [0, 0, 1, 1]
    again, other = (open_split("digits", None, "train", size=100, seed=seed) for seed in (0, 1))
    assert open_split("digits", None, "train", size=100).labels.tolist() == again.labels.tolist()
    assert [again.picture(i).tobytes() for i in range(9)] != [other.picture(i).tobytes() for i in range(9)]


def test_cache_changes_no_picture(folder: Path) -> None:
    pictures = open_split("folder", folder / "plain", "train")
    kept = Decoded(pictures, memory=4 * 20 * 24 * 3)
    assert len(kept.arrays) == 4
    for index in range(10):
        assert np.array_equal(np.asarray(kept.picture(index)), np.asarray(pictures.picture(index)))


def test_variation_depends_on_seed_epoch_and_index_alone() -> None:
    pictures = open_split("digits", None, "train", size=20)
    variation = Variation(crop_padding=4, smallest_area=0.5, flip=0.5, color_jitter=0.3, random_erase=0.5)
    keys = [[(epoch, index)] for epoch in (0, 1) for index in range(20)]
    made = []
    for workers, noise in ((0, 1), (2, 2)):
        torch.manual_seed(noise)
        data = Prepared(pictures, training_transform(SETTINGS, variation), seed=3)
        made.append(torch.cat([batch["image"] for batch in DataLoader(data, batch_sampler=keys, num_workers=workers)]))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0][:20], made[0][20:])
    other = Prepared(pictures, training_transform(SETTINGS, variation), seed=4)
    assert not torch.equal(other[0, 0]["image"], made[0][0])


def test_preparing_leaves_the_generator_alone() -> None:
    data = Prepared(open_split("digits", None, "test"), training_transform(SETTINGS, Variation(flip=0.5)), seed=0)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    data[0, 0]
    assert torch.equal(torch.get_rng_state(), before)


def test_without_variation_training_and_evaluation_agree(folder: Path) -> None:
    pictures = open_split("folder", folder / "plain", "train")
    train, test = training_transform(SETTINGS, Variation()), evaluation_transform(SETTINGS)
    for index in range(4):
        torch.testing.assert_close(train(pictures.picture(index)), test(pictures.picture(index)))


def test_timm_names_read_what_lies_there(tmp_path: Path, folder: Path) -> None:
    pictures = open_split("torch/image_folder", folder / "plain", "train")
    assert list(pictures.classes) == ["ant", "zebra"]
    assert pictures.labels.tolist() == [0] * 5 + [1] * 5
    with pytest.raises(DataError, match="torch/cifar10 cannot be opened at"):
        open_split("torch/cifar10", tmp_path, "train")


@pytest.mark.skipif(not (CIFAR / "cifar10_test.zip").exists(), reason="the CIFAR-10 zips are not here")
def test_cifar_zips() -> None:
    test = open_split("folder", CIFAR, "test")
    assert len(test.labels) == 10_000
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert test.picture(9_999).size == (32, 32)
