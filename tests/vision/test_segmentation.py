"""Pictures whose pixels have classes: what they are made of, how a segmenter is judged, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from peft_kernels.data_errors import DataError, UnknownNameError
from vision_peft.data import open_split
from vision_peft.data.masks import Collages, MaskFolder, PreparedMasks, Scenes
from vision_peft.data.pictures import Subset
from vision_peft.tasks import Segmentation
from vision_peft.tasks.segmentation import MaskDataSpec, SegmenterSpec

PLAIN = ([0.0] * 3, [1.0] * 3)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Three classes of pictures of one colour, which says the class."""
    for split in ("train", "test"):
        for label, name in enumerate(("ant", "bee", "cat")):
            folder = tmp_path / "photographs" / split / name
            folder.mkdir(parents=True)
            for index in range(4):
                Image.new("RGB", (20, 20), (100 * label, index, 0)).save(folder / f"{index}.png")
    return tmp_path / "photographs"


def masks(root: Path, values: list[int]) -> Path:
    for split in ("train", "test"):
        (root / split / "images").mkdir(parents=True)
        (root / split / "masks").mkdir()
        for index, value in enumerate(values):
            Image.new("RGB", (40, 30), (index, 0, 0)).save(root / split / "images" / f"{index}.jpg")
            Image.new("L", (40, 30), value).save(root / split / "masks" / f"{index}.png")
    (root / "classes.txt").write_text("ground\nthing\n")
    return root


def test_a_collages_classes_are_those_of_the_photographs_it_shows(photographs: Path) -> None:
    collages = Collages(open_split("folder", photographs, "train"), 5, 32)
    seen = set()
    for seed in range(10):
        picture, classes = collages.pair(0, seed)
        assert np.array_equal(np.asarray(picture)[..., 0], 100 * classes)
        seen |= set(np.unique(classes).tolist())
    assert collages.classes == ["ant", "bee", "cat"]
    assert seen == {0, 1, 2}


def test_training_pictures_are_new_each_epoch_and_test_pictures_are_not() -> None:
    varied, fixed = (PreparedMasks(Scenes(4, 32), 32, (48, 48), PLAIN, 0, varied) for varied in (True, False))
    assert varied[0, 1]["image"].shape == (3, 48, 48)
    assert varied[0, 1]["classes"].shape == (32, 32)
    assert torch.equal(varied[0, 1]["classes"], varied[0, 1]["classes"])
    assert not torch.equal(varied[0, 1]["classes"], varied[1, 1]["classes"])
    assert torch.equal(fixed[0, 1]["image"], fixed[5, 1]["image"])


def test_a_folder_of_masks(tmp_path: Path) -> None:
    folder = MaskFolder(masks(tmp_path, [1, 255]), "train")
    assert folder.classes == ["ground", "thing"]
    prepared = PreparedMasks(folder, 16, (16, 16), PLAIN, 0, True)
    assert [int(prepared[0, index]["classes"].unique()) for index in range(2)] == [1, 255]
    masks(tmp_path / "strange", [2])
    with pytest.raises(DataError, match=r"0\.png: expected one channel of 0 to 1 or 255; found the value 2"):
        MaskFolder(tmp_path / "strange", "train").pair(0, 0)
    (tmp_path / "train" / "masks" / "1.png").unlink()
    with pytest.raises(DataError, match=r"1\.png is missing"):
        MaskFolder(tmp_path, "train")
    with pytest.raises(DataError, match=r"images is missing: expected classes.txt, val/images and val/masks"):
        MaskFolder(tmp_path, "val")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (("train/masks/0.png", b"none"), r"0\.png is not a readable mask"),
        (("classes.txt", b"thing\nthing\n"), r"a class a line, each once; found \['thing', 'thing'\]"),
        (("classes.txt", b"\n"), r"a class a line, each once; found \[\]"),
    ],
)
def test_files_that_are_none_are_named(what: tuple[str, bytes], message: str, tmp_path: Path) -> None:
    (masks(tmp_path, [1]) / what[0]).write_bytes(what[1])
    with pytest.raises(DataError, match=message):
        MaskFolder(tmp_path, "train").pair(0, 0)


def test_a_mask_is_as_large_as_its_picture(tmp_path: Path) -> None:
    Image.new("L", (30, 40), 1).save(masks(tmp_path, [1]) / "train" / "masks" / "0.png")
    with pytest.raises(DataError, match=r"0\.png is 30×40 pixels and its picture 0\.jpg 40×30"):
        MaskFolder(tmp_path, "train").pair(0, 0)


def test_pixels_that_do_not_count_teach_and_judge_nothing(tmp_path: Path) -> None:
    data = MaskDataSpec(name="folder", root=str(masks(tmp_path, [255])), side=8)
    task = Segmentation(SegmenterSpec(), data, 0)
    batch = {"image": torch.zeros(1, 3, 8, 8), "classes": torch.full((1, 8, 8), 255)}

    def model(image: Tensor) -> Tensor:
        return torch.zeros(1, 2, 8, 8)

    assert task.loss(model, batch) == 0
    with pytest.raises(DataError, match="no pixel of the pictures to test on counts: all are 255"):
        task.figures(task.evaluate(model, [batch]))


def test_collages_need_as_many_photographs_as_they_show(photographs: Path) -> None:
    pictures = Subset(open_split("folder", photographs, "train"), np.arange(3))
    with pytest.raises(DataError, match="made of up to 4 photographs; found 3"):
        Collages(pictures, 1, 16)


def test_figures_are_the_intersections_over_unions() -> None:
    task = Segmentation(SegmenterSpec(), MaskDataSpec(train_count=2, test_count=2, side=4), 0)
    true = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 255, 255], [2, 2, 2, 2]]])
    told = torch.tensor([[[0, 0, 1, 1], [0, 1, 1, 1], [2, 2, 0, 0], [1, 2, 2, 2]]])

    def model(image: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(told, 4).movedim(-1, 1).float() * 9

    batch = {"image": torch.zeros(1, 3, 4, 4), "classes": true}
    once, twice = task.evaluate(model, [batch]), task.evaluate(model, [batch, batch])
    figures = task.figures(once)
    assert figures["mean_iou"] == pytest.approx((3 / 4 + 4 / 6 + 5 / 6) / 3)  # the triangle is neither told nor there
    assert figures["pixel_accuracy"] == pytest.approx(12 / 14)
    assert task.figures(twice) == pytest.approx(figures)


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ({"name": "vit_minni"}, {}, "did you mean 'vit_mini'"),
        ({}, {"name": "collages"}, "add --data.root FOLDER"),
    ],
)
def test_what_is_not_there_is_named(model: dict[str, str], data: dict[str, str], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        Segmentation(SegmenterSpec(**model), MaskDataSpec(**data), 0).build_model()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaskDataSpec(test_count=0), "data.test_count must be at least 1, found 0"),
        (lambda: SegmenterSpec(width=2), "model.width must be at least 4, found 2"),
        (lambda: SegmenterSpec(maps=()), "number of model.maps must be at least 1"),
        (
            lambda: Segmentation(SegmenterSpec(maps=(9,)), MaskDataSpec(), 0).build_model(),
            r"vit_mini has no maps \[9\]",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_pictures_have_the_models_size_or_their_own() -> None:
    data = MaskDataSpec(train_count=2, test_count=2, side=48)
    for spec, size in (
        (SegmenterSpec("vit_mini", maps=(4,)), 32),
        (SegmenterSpec("resnet10t", pretrained=False), 48),
        (SegmenterSpec("resnet10t", pretrained=False, img_size=64), 64),
    ):
        task = Segmentation(spec, data, 0)
        model = task.build_model().eval()
        sample = task.test_data(model)[0, 0]
        assert sample["image"].shape == (3, size, size)
        assert sample["classes"].shape == (48, 48)
        assert model(sample["image"][None]).shape == (1, 4, size, size)
    with pytest.raises(DataError, match=r"vit_mini cannot be made for pictures of 50 pixels .*multiple of 4, not 50"):
        Segmentation(SegmenterSpec(img_size=50), data, 0).build_model()


@pytest.mark.parametrize(
    "spec",
    [
        SegmenterSpec("vit_mini", img_size=64, maps=(4,), width=32),
        SegmenterSpec("piip_mini", maps=(2,), width=32),
    ],
    ids=["vit_mini", "piip_mini"],
)
def test_a_segmenter_learns_its_scenes(spec: SegmenterSpec) -> None:
    torch.manual_seed(0)
    task = Segmentation(spec, MaskDataSpec(train_count=4, test_count=2), 0)
    model = task.build_model().train()
    data = task.training_data(model)
    batch = torch.utils.data.default_collate([data[0, index] for index in range(4)])
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=2e-3), []
    for _ in range(20):
        loss = task.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert not [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert losses[-1] < 0.65 * losses[0]
    assert task.draw(model.eval()).size == (2 * 68 + 4, 3 * 68 + 4)
