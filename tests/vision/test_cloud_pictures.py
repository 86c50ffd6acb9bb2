"""Pictures of clouds: what is told in them, and the page that turns them."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch

from vision_peft.tasks import cloud_pictures
from vision_peft.tasks.cloud_pictures import SIDE, TITLE, Shown, page, parts_sheet, sheet, shown_cloud

from .tiny_clouds import adapted, clouds

CLASSES = ("bed", "chair", "door")


def seen(count: int = 2) -> list[Shown]:
    return [shown_cloud(adapted(), cloud, "chair", CLASSES) for cloud in clouds(count, 60)]


def test_what_is_told_is_what_the_model_says() -> None:
    cloud = clouds(1, 60)
    shown = shown_cloud(adapted(), cloud[0], "bed", CLASSES)
    share = adapted()(cloud).softmax(-1)[0]
    assert shown.told == CLASSES[int(share.argmax())]
    assert shown.share == pytest.approx(share.max().item(), abs=1e-5)
    right = Shown(shown.view, shown.spectrum, shown.told, shown.told, 0.5)
    assert right.title == f"{shown.told} 50 %"


def test_a_sheet_has_a_row_for_each_cloud() -> None:
    picture = sheet(seen())
    assert picture.size == (7 * SIDE, 2 * (SIDE + TITLE))
    colours = np.asarray(picture.crop((0, TITLE, SIDE, SIDE))).reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) > 50
    few = sheet([shown_cloud(adapted(), clouds(1, 9)[0], "bed", CLASSES)])
    assert few.size == (6 * SIDE, SIDE + TITLE)  # of nine points there is no cloud of 32 components


def test_parts_are_coloured_as_they_are_and_as_they_are_told() -> None:
    points, true = clouds(1, 80)[0], torch.arange(80) % 3 + 12
    same = np.asarray(parts_sheet([("Chair", points, true, true)]))
    other = np.asarray(parts_sheet([("Chair", points, true, 12 + (true + 1) % 3)]))
    left, right = same[TITLE:, :SIDE], same[TITLE:, SIDE:]
    np.testing.assert_array_equal(left, right)
    assert (other[TITLE:, :SIDE] != other[TITLE:, SIDE:]).any()


def test_the_page_stands_by_itself_or_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    if importlib.util.find_spec("plotly"):
        text = page(seen(), "chairs")
        assert text is not None
        assert text.count("Scatter3d") + text.count("scatter3d") >= 2
        assert "coloured by component" in text
        assert 'script src="http' not in text
    monkeypatch.setattr(cloud_pictures.importlib, "import_module", missing)
    assert page(seen(1), "chairs") is None
