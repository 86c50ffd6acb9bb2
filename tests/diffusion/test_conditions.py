"""Condition images from any picture, how well pictures keep to them, and the emoji as a set of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import diffusion_peft as dp
from diffusion_peft.data.conditions import MAKERS, Condition
from diffusion_peft.data.emoji_pictures import EmojiPictures
from diffusion_peft.data.fidelity import color_distance, edge_agreement
from peft_kernels.ops import edge_lines
from tests.diffusion.command import picture


def disc(ground: tuple[int, int, int] = (255, 255, 255), ink: tuple[int, int, int] = (0, 0, 255)) -> Image.Image:
    rows, columns = np.mgrid[:64, :64] - 31.5
    inside = (rows**2 + columns**2 < 20**2)[..., None]
    return Image.fromarray(np.where(inside, np.array(ink), np.array(ground)).astype(np.uint8))


def test_edges_are_lines_of_one_pixel_where_a_step_is_steep_enough() -> None:
    step = torch.zeros(1, 3, 8, 8)
    step[..., 4:] = 0.5
    for turned in (False, True):
        across = step.mT if turned else step
        lines = edge_lines(across, 0.1)[0, 0]
        lines = lines.mT if turned else lines
        assert lines.sum() == 8
        assert lines.any(0).nonzero().flatten().tolist() in ([3], [4])
        assert not edge_lines(across, 0.25).any()  # a step of 0.5 has a slope of 0.25
    around = edge_lines(torch.from_numpy(np.array(disc())).permute(2, 0, 1)[None] / 255, 0.1)[0, 0]
    rows, columns = (around.nonzero() - 31.5).unbind(1)
    assert 100 < around.sum() < 190  # about 2π · 20
    assert ((rows**2 + columns**2).sqrt() - 20).abs().max() < 1.6


def test_depth_is_bright_on_what_stands_off_the_ground_whatever_its_colour() -> None:
    for ground in ((255, 255, 255), (15, 15, 15), (245, 150, 190)):
        nearness = Condition("depth").tensor(disc(ground))[0]
        assert nearness[32, 32] > 0.99
        assert nearness[2, 2] < 0.01
        assert 0.2 < nearness[32, 12] < 0.8  # softly


def test_colours_are_the_means_of_patches() -> None:
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    found = np.asarray(Condition("colors", patches=4)(Image.fromarray(values))).astype(float)
    for row in range(0, 64, 16):
        for column in range(0, 64, 16):
            patch = slice(row, row + 16), slice(column, column + 16)
            assert np.abs(found[patch] - values[patch].mean((0, 1))).max() <= 0.51


def test_fidelity_counts_edges_within_a_pixel_and_compares_the_colours_of_patches() -> None:
    wanted = torch.zeros(4, 1, 8, 8, dtype=torch.bool)
    wanted[:3, 0, 4, :] = True
    found = wanted.roll(1, 2).clone()
    found[1, 0, :4, :] = True  # 4 rows more, of which one is near: precision 2 / 5
    found[2] = wanted[2].roll(3, 1)
    torch.testing.assert_close(edge_agreement(found, wanted), torch.tensor([1.0, 2 * 0.4 / 1.4, 0.0, 1.0]))
    pictures = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) / 2
    other = pictures + 0.25
    other[1] = pictures[1].roll(1, 2)
    found = color_distance(pictures, other, patches=1)
    torch.testing.assert_close(found, torch.tensor([0.25, 0.0]))


@pytest.mark.parametrize("name", MAKERS)
def test_condition_has_the_size_of_its_picture_and_comes_back_from_its_file(name: Any, tmp_path: Path) -> None:
    condition = Condition(name, threshold=0.2, patches=2)
    assert condition(picture(0)).size == picture(0).size
    condition.save(tmp_path)
    assert Condition.load(tmp_path) == condition


@pytest.mark.parametrize(
    ("text", "said"), [("{}", "None: known are edges"), ("[", "is damaged"), ('{"nam": "edges"}', "is damaged")]
)
def test_damaged_condition_is_one_sentence(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(dp.DataError, match="holds no condition"):
        Condition.load(tmp_path)
    (tmp_path / "condition.json").write_text(text)
    with pytest.raises(dp.DataError, match=said):
        Condition.load(tmp_path)


def test_emoji_are_those_that_were_trained_on_and_then_those_that_were_not(emoji: Path) -> None:
    pictures = EmojiPictures(emoji / "folder", 32)
    assert len(pictures) == 40
    assert [pictures.drawn((0, index)).caption.split(",")[0].split(" on ")[0] for index in (0, 38, 39)] == [
        "thing number 0",
        "thing number 19",
        "thing number 39",
    ]
    again, other = pictures.drawn((0, 5)), {np.asarray(pictures.drawn((e, 5)).image).tobytes() for e in range(8)}
    assert again.caption == EmojiPictures(emoji / "folder", 32).drawn((0, 5)).caption
    assert len(other) > 1
