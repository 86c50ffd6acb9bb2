"""The embedded model of clouds: loaded without a network, and worth its pretraining."""

from __future__ import annotations

import json
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vision_peft.data.clouds import PreparedClouds, open_clouds
from vision_peft.models.point_transformer import WEIGHTS

FILES = [WEIGHTS, WEIGHTS.with_name("measured.json"), WEIGHTS.with_name("README.md")]


def measured() -> dict[str, Any]:
    return json.loads(FILES[1].read_text(encoding="utf-8"))


def pooled(pretrained: bool, part: str) -> tuple[torch.Tensor, Any]:
    """Features of the first 150 clouds of a part of `scans`, and their labels."""
    torch.manual_seed(0)
    model = timm.create_model("point_mini", pretrained=pretrained, num_classes=0).eval()
    data = PreparedClouds(open_clouds("scans", None, part, size=150), 1024, None, seed=0)
    points = torch.stack([data[0, index]["points"] for index in range(150)])
    with torch.no_grad():
        return torch.cat([model(batch) for batch in points.split(50)]), data.clouds.labels


def test_weights_load_offline_also_for_other_classes() -> None:
    stored = load_file(WEIGHTS)
    three, seven = (timm.create_model("point_mini", pretrained=True, num_classes=count) for count in (3, 7))
    for name, tensor in stored.items():
        assert torch.equal(three.state_dict()[name], tensor.to(three.state_dict()[name].dtype))
        assert torch.equal(three.state_dict()[name], seven.state_dict()[name])
    assert not set(three.state_dict()) - set(stored) - {n for n in three.state_dict() if n.startswith("cls_")}
    assert three(torch.rand(2, 100, 3)).shape == (2, 3)


def test_tokens_that_no_file_holds_are_the_same_in_every_model() -> None:
    one, other = timm.create_model("point_mini"), timm.create_model("point_mini", num_classes=4)
    assert torch.equal(one.cls_token, other.cls_token)  # type: ignore[arg-type]
    assert torch.equal(one.cls_pos, other.cls_pos)  # type: ignore[arg-type]
    assert not torch.equal(one.cls_pos, one.cls_token)  # type: ignore[arg-type]


def test_it_is_small_and_its_card_states_what_was_measured() -> None:
    card, figures = FILES[2].read_text(encoding="utf-8"), measured()
    assert WEIGHTS.stat().st_size == figures["bytes"] < 4_000_000
    assert f"**{figures['loss']:.5f}** ({figures['decibels']:.2f} dB)" in card
    assert f"**{figures['probe_pretrained']:.1f} %**" in card
    assert figures["probe_pretrained"] > figures["probe_untrained"] + 2 * figures["probe_untrained_std"]


@pytest.mark.filterwarnings("ignore")
def test_pretraining_makes_features_of_other_objects_linearly_separable() -> None:
    accuracies = []
    for pretrained in (False, True):
        (x, labels), (test, expected) = pooled(pretrained, "train"), pooled(pretrained, "test")
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(x, labels)
        accuracies.append(probe.score(test, expected))
    assert accuracies[1] > accuracies[0]
