"""The ways a run may be carried out: each ends with a result that tells what it did."""

from pathlib import Path

import pytest
import torch
from torch import nn

from peft_runs.attach import training_mode, without_gradient
from tests.runs.command import SMALL, lines, process, result


def test_half_precision_and_checkpointing(tmp_path: Path) -> None:
    words = ("--method.name", "snell", "--run.precision", "bf16", "--run.gradient_checkpointing", "true")
    run = process("train", *SMALL, *words, "--run.channels_last", "true", "--out", tmp_path / "run")
    assert run.returncode == 0, run.stderr
    assert "no gradient" not in run.stdout
    told = result(tmp_path / "run")
    assert told["trainable_parameters"] > told["trainable_parameters_without_head"] > 0
    assert told["peak_bytes"] > 0
    assert told["adapter_bytes"] == (tmp_path / "run" / "adapter" / "adapter_model.safetensors").stat().st_size
    steps = [line for line in lines(tmp_path / "run") if line["kind"] == "step"]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert all(line["loss"] < 4 for line in steps)


def test_checkpointing_and_parts_need_less_memory(tmp_path: Path) -> None:
    peaks = {}
    for name, words in {"plain": (), "parts": ("--run.accumulate", "4")}.items():
        run = process("train", *SMALL, "--run.epochs", "1", *words, "--out", tmp_path / name)
        assert run.returncode == 0, run.stderr
        peaks[name] = result(tmp_path / name)["peak_bytes"]
    assert peaks["parts"] < 0.7 * peaks["plain"]


@pytest.mark.parametrize("adapted", [False, True])
def test_frozen_norms_keep_their_statistics(adapted: bool) -> None:
    norm, trained = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), norm.requires_grad_(False), trained)
    training_mode(model, adapted)
    model(torch.randn(2, 3, 5, 5))
    assert norm.training is not adapted
    assert int(norm.num_batches_tracked or 0) == (0 if adapted else 1)
    assert trained.training


def test_parameters_without_gradient_are_named() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "forgotten": nn.Linear(2, 2), "frozen": nn.Linear(2, 2)})
    model["frozen"].requires_grad_(False)
    model["used"](torch.randn(1, 2)).sum().backward()
    assert without_gradient(model) == ["forgotten.weight", "forgotten.bias"]
