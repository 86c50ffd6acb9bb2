"""Tasks on point clouds, through the commands: masked modelling, and what it leaves adapted to scans."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.runs.command import here

TINY = ("--run.epochs", "1", "--optim.batch_size", "15", "--optim.warmup_epochs", "0", "--run.evaluate_epochs", "1")
GROUPS = ("--model.num_groups", "8", "--model.group_size", "4")
CLOUDS = ("--data.points", "64", "--data.train_size", "45", "--data.test_size", "15")


def test_pretrained_by_masks_then_adapted_to_scans(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pretrained, adapted = tmp_path / "pretrained", tmp_path / "adapted"
    code, _, error = here(capsys, "train", "--recipe", "point_mini", *TINY, *GROUPS, *CLOUDS, "--out", pretrained)
    assert code == 0, error
    weights = pretrained / "adapter" / "model.safetensors"
    words = ("--model.weights", weights, "--method.local_size", "4", *TINY, *GROUPS, *CLOUDS, "--out", adapted)
    code, _, error = here(capsys, "train", "--recipe", "scans_pointgst", *words)
    assert code == 0, error
    kept = load_file(adapted / "adapter" / "adapter_model.safetensors")
    assert any("pcsa_adapter" in name for name in kept)
    assert not any("qkv" in name for name in kept)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model.name", "point_may"), "unknown model of points 'point_may' (did you mean 'point_mae'"),
        (("--model.weights", "nowhere.safetensors"), "nowhere.safetensors is no readable file of safetensors"),
        (("--data.name", "scan"), "unknown clouds 'scan' (did you mean 'scans'"),
        (("--data.name", "modelnet40"), "add --data.root FOLDER"),
    ],
)
def test_what_is_not_there_is_one_sentence(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    code, _, error = here(capsys, "train", "--recipe", "scans_pointgst", *CLOUDS, *words, "--out", tmp_path / "out")
    assert code != 0
    assert "\n" not in error
    assert message in error
