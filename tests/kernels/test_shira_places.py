"""Places of SHiRA: as many as asked for, by seed, without values of the weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from peft_kernels.shira_places import random_places


@pytest.mark.parametrize(("rows", "columns", "r"), [(40, 30, 1), (40, 30, 10), (7, 5, 3), (64, 64, 4)])
def test_mask_has_as_many_places_as_lora_has_parameters(rows: int, columns: int, r: int) -> None:
    mask = random_places(nn.Linear(columns, rows), r)
    assert mask.shape == (rows, columns)
    assert int(mask.sum()) == min(r * (rows + columns), rows * columns)


def test_places_depend_on_the_seed_alone() -> None:
    with torch.device("meta"):
        empty = nn.Linear(50, 40)
        masks = [random_places(empty, 2, seed) for seed in (1, 1, 2)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert torch.equal(masks[0], random_places(nn.Linear(50, 40), 2, 1))


def test_every_place_is_as_likely() -> None:
    layer = nn.Linear(6, 5)
    counts = torch.stack([random_places(layer, 1, seed) for seed in range(2000)]).float().mean(0)
    expected = 11 / 30
    assert (counts - expected).abs().max() < 5 * (expected * (1 - expected) / 2000) ** 0.5
