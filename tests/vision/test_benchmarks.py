"""VTAB-1k, FGVC and the few-shot protocol: what the tasks are, their lists, and who sees which picture."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform

from tests.vision.listed import digit_pictures, vtab_task
from vision_peft.data import DataError, open_split
from vision_peft.data.benchmarks import BENCHMARKS, FGVC, VTAB
from vision_peft.data.few_shot import FewShot
from vision_peft.data.transforms import Variation, training_transform

NATURAL = "cifar 100 10000, caltech101 102 6084, dtd 47 1880, oxford_flowers102 102 6149, oxford_iiit_pet 37 3669"
NATURAL += ", svhn 10 26032, sun397 397 21750"
SPECIALIZED = "patch_camelyon 2 32768, eurosat 10 5400, resisc45 45 6300, diabetic_retinopathy 5 42670"
STRUCTURED = "clevr_count 8 15000, clevr_dist 6 15000, dmlab 6 22735, kitti 4 711, dsprites_loc 16 73728"
STRUCTURED += ", dsprites_ori 16 73728, smallnorb_azi 18 12150, smallnorb_ele 9 12150"
FINE_GRAINED = {
    "cub": (200, 5394, 600, 5794),
    "nabirds": (555, 21536, 2393, 24633),
    "flowers": (102, 1020, 1020, 6149),
    "dogs": (120, 10800, 1200, 8580),
    "cars": (196, 7329, 815, 8041),
}


@pytest.mark.parametrize(
    ("group", "published"), {"Natural": NATURAL, "Specialized": SPECIALIZED, "Structured": STRUCTURED}.items()
)
def test_vtab_tasks_are_the_published_ones(group: str, published: str) -> None:
    found = [(name, task) for name, task in VTAB.tasks.items() if task.group == group]
    assert [f"{name} {task.classes} {task.size('test')}" for name, task in found] == published.split(", ")
    assert {(task.size("train"), task.size("val"), task.size("trainval")) for _, task in found} == {(800, 200, 1000)}


def test_fgvc_tasks_are_the_published_ones() -> None:
    assert {name: (task.classes, *task.sizes) for name, task in FGVC.tasks.items()} == FINE_GRAINED


def test_mean_head_sizes_are_those_of_the_papers() -> None:
    for name, mean in (("vtab", 38_046), ("fgvc", 180_407)):
        classes = [task.classes for task in BENCHMARKS[name].tasks.values()]
        assert 769 * sum(classes) / len(classes) == pytest.approx(mean, abs=1)


@pytest.fixture(scope="module")
def kitti(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout of a VTAB-1k folder with digits for pictures."""
    root = tmp_path_factory.mktemp("data") / "vtab-1k"
    vtab_task(root / "kitti", 4, 711)
    return root


@pytest.mark.parametrize("above", ["", "..", "kitti"])
def test_vtab_parts_are_what_the_lists_say(above: str, kitti: Path) -> None:
    parts = {part: open_split("vtab/kitti", (kitti / above).resolve(), part) for part in ("train", "val", "trainval")}
    assert {part: len(found.labels) for part, found in parts.items()} == {"train": 800, "val": 200, "trainval": 1000}
    both = parts["train"].labels.tolist() + parts["val"].labels.tolist()
    assert both == parts["trainval"].labels.tolist()
    assert list(parts["train"].classes) == ["0", "1", "2", "3"]
    assert parts["val"].picture(7).tobytes() == parts["trainval"].picture(807).tobytes()
    test = open_split("vtab/kitti", kitti, "test")
    assert len(test.labels) == 711
    assert test.picture(0).tobytes() == digit_pictures()[1000].convert("RGB").tobytes()


SPOILT = {
    "a line too few": ("val200.txt", lambda lines: lines[1:], "val200.txt: expected 200 pictures, found 199"),
    "a class too many": ("val200.txt", lambda lines: ["images/0.png 4", *lines[1:]], "classes 0 to 3, found 4"),
    "no label": ("val200.txt", lambda lines: ["images/0.png", *lines[1:]], "line 1: expected 'path label'"),
    "outside": ("val200.txt", lambda lines: ["../0.png 1", *lines[1:]], "'../0.png' leaves the folder"),
    "a class missing": (
        "test.txt",
        lambda lines: [line.replace(" 3", " 2") for line in lines],
        "vtab/kitti has 4 classes, found 3 (none of 3)",
    ),
    "no list": ("val200.txt", None, "val200.txt is missing"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_wrong_list_is_refused(case: str, kitti: Path, tmp_path: Path) -> None:
    file, spoil, said = SPOILT[case]
    (tmp_path / "kitti").mkdir()
    if spoil:
        lines = spoil((kitti / "kitti" / file).read_text().splitlines())
        (tmp_path / "kitti" / file).write_text("\n".join(lines))
    with pytest.raises(DataError) as error:
        open_split("vtab/kitti", tmp_path, "test" if file == "test.txt" else "val")
    assert said in str(error.value)
    assert str(tmp_path / "kitti" / file) in str(error.value)


def test_missing_data_tells_every_place_looked_at(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        open_split("fgvc/cub", tmp_path, "train")
    for folder in ("CUB_200_2011", "CUB", "fgvc/CUB_200_2011"):
        assert str(tmp_path / folder) in str(error.value)
    with pytest.raises(DataError, match=r"data\.root"):
        open_split("vtab/cifar", None, "train")


@pytest.mark.parametrize(
    ("name", "split", "nearest"),
    [
        ("vtab/cifarr", "train", "'cifar'"),
        ("fgvc/nabird", "train", "'nabirds'"),
        ("vtab/cifar", "trainvall", "'trainval'"),
        ("vtb/cifar", "train", "'vtab/cifar'"),
    ],
)
def test_wrong_name_gets_the_nearest(name: str, split: str, nearest: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"did you mean {nearest}"):
        open_split(name, tmp_path, split)


def test_fgvc_lists_and_labels_from_one(tmp_path: Path) -> None:
    folder = tmp_path / "OxfordFlower"
    folder.mkdir()
    digit_pictures()[0].save(folder / "flower.png")
    sizes = {"train": 1020, "val": 1020, "test": 6149}
    for part, size in sizes.items():
        # A mapping has every path once: other spellings of one file.
        listed = {"./" * index + "flower.png": index % 102 + 1 for index in range(size if part != "test" else 0)}
        (folder / f"{part}.json").write_text(json.dumps(listed))
    both = open_split("fgvc/flowers", tmp_path, "trainval")
    assert both.labels.tolist() == [index % 102 for _ in range(2) for index in range(1020)]
    assert both.picture(3).size == (8, 8)
    with pytest.raises(DataError, match="expected 6,149 pictures, found 0"):
        open_split("fgvc/flowers", tmp_path, "test")


def test_few_shot_parts_share_no_picture_and_keep_the_classes() -> None:
    pool = open_split("digits", None, "train")
    whole = [pool.picture(index).tobytes() for index in range(1000)]
    cut = FewShot("train", 500, 100, seed=3)
    parts = {
        name: open_split("digits", None, name, few_shot=cut) for name in ("train", "val", "trainval", "rest", "test")
    }
    assert {name: len(part.labels) for name, part in parts.items()} == {
        "train": 400,
        "val": 100,
        "trainval": 500,
        "rest": 500,
        "test": 797,
    }
    held = {name: sorted(part.picture(i).tobytes() for i in range(len(part.labels))) for name, part in parts.items()}
    assert sorted(held["train"] + held["val"]) == held["trainval"]
    assert sorted(held["trainval"] + held["rest"]) == sorted(whole)
    for one, other in (("train", "val"), ("trainval", "rest"), ("trainval", "test")):
        assert not set(held[one]) & set(held[other])
    assert np.abs(np.bincount(parts["val"].labels) - 10).max() <= 1
    again = open_split("digits", None, "val", few_shot=cut)
    other = open_split("digits", None, "val", few_shot=FewShot("train", 500, 100, seed=4))
    pictures = [[part.picture(i).tobytes() for i in range(100)] for part in (parts["val"], again, other)]
    assert pictures[0] == pictures[1] != pictures[2]


def test_few_shot_of_a_folder_of_classes(tmp_path: Path) -> None:
    for index, picture in enumerate(digit_pictures()[:40]):
        (tmp_path / str(index % 2)).mkdir(exist_ok=True)
        picture.save(tmp_path / str(index % 2) / f"{index}.png")
    cut = FewShot(".", 20, 4, seed=0)
    assert len(open_split("folder", tmp_path, "rest", few_shot=cut).labels) == 20
    with pytest.raises(DataError, match=r"data\.val_size 19 does not fit"):
        open_split("folder", tmp_path, "val", few_shot=FewShot(".", 20, 19, seed=0))
    with pytest.raises(DataError, match="nothing is left for the part 'rest'"):
        open_split("folder", tmp_path, "rest", few_shot=FewShot(".", None, 4, seed=0))


@pytest.mark.parametrize(("mode", "share"), [("squash", 1.0), ("center", 0.875)])
def test_training_without_variation_is_timms_evaluation(mode: str, share: float) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8))
    settings = {
        "input_size": (3, 224, 224),
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "crop_pct": share,
        "crop_mode": mode,
    }
    train = training_transform(settings, Variation())(picture)
    assert train.shape == (3, 224, 224)
    assert abs(float(train.mean()) - float((np.asarray(picture) / 127.5 - 1).mean())) < 0.05
    assert np.allclose(train, create_transform(**settings, is_training=False)(picture), atol=1e-6)  # type: ignore[operator]
