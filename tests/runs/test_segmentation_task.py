"""Segmentation through the commands: a pyramid trained whole, an adapter on a plain model."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.runs.command import here

TINY = (
    *("--data.train_count", "16", "--data.test_count", "4", "--optim.batch_size", "8", "--optim.warmup_epochs", "0"),
    *("--run.epochs", "1", "--run.precision", "no", "--model.width", "16"),
)
PLAIN = ("--model.name", "vit_mini", "--model.img_size", "32", "--model.maps", "[4]", "--method.name", "lora")


@pytest.mark.parametrize("words", [(), PLAIN], ids=["pyramid", "lora"])
def test_shapes_are_learnt_and_judged_again(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    code, _, error = here(capsys, "train", "--recipe", "shapes", *TINY, *words, "--out", tmp_path / "run")
    assert code == 0, error
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert 0 < result["mean_iou"] < result["pixel_accuracy"] < 1
    with Image.open(sorted((tmp_path / "run" / "samples").glob("*.png"))[-1]) as picture:
        assert picture.size == (4 * 68 + 4, 3 * 68 + 4)
    code, said, error = here(capsys, "evaluate", tmp_path / "run")
    assert code == 0, error
    assert f"{result['mean_iou']:.4f}" in said
    page = html.unescape((tmp_path / "run" / "report.html").read_text())
    assert "16 of scenes, 64 pixels; 4 judge" in page
    (usage,) = re.findall(r"<code>(import timm.*?)</code>", page, re.DOTALL)
    made: dict[str, Any] = {}
    exec(usage.replace("FOLDER", str(tmp_path / "run" / "adapter")), made)
    kept = load_file(next((tmp_path / "run" / "adapter").glob("*.safetensors")))
    head = next(kept[name] for name in kept if name.endswith("head.4.weight"))
    assert any(torch.equal(head, tensor) for tensor in made["model"].state_dict().values())
    assert not [name for name in kept if words and name.endswith("fc1.base_layer.weight")]
