"""Processes that share a batch, and parts of a batch one after another, train as one process with the whole batch."""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.runs.command import SMALL, process, result

# No dropout. Adam's first steps are gradient / |gradient|, which magnifies rounding: a small rate keeps it below 1e-5.
WORDS = (*SMALL, "--method.name", "full", "--data.variation.crop_padding", "2", "--optim.lr", "0.0002")


def largest_difference(one: Path, other: Path) -> float:
    left, right = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (one, other))
    assert left.keys() == right.keys()
    return max((left[name] - right[name]).abs().max().item() for name in left)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    alone, together, parts = tmp_path / "alone", tmp_path / "together", tmp_path / "parts"
    torchrun = (str(Path(sys.executable).with_name("torchrun")), "--nproc_per_node", "2", "--no-python")
    for run in (
        process("train", *WORDS, "--out", alone),
        process("train", *WORDS, "--out", together, before=torchrun),
        process("train", *WORDS, "--run.accumulate", "4", "--out", parts),
    ):
        assert run.returncode == 0, run.stderr
    assert [result(folder)["processes"] for folder in (alone, together, parts)] == [1, 2, 1]
    for folder in (together, parts):
        assert largest_difference(alone, folder) <= 1e-5
        assert abs(result(alone)["loss"] - result(folder)["loss"]) <= 1e-5


def test_training_moves_what_is_compared(tmp_path: Path) -> None:
    """The comparison above could not fail if a run wrote the weights it began with."""
    run = process("train", *WORDS, "--run.epochs", "1", "--out", tmp_path / "one")
    assert run.returncode == 0, run.stderr
    more = process("train", *WORDS, "--out", tmp_path / "two")
    assert more.returncode == 0, more.stderr
    assert largest_difference(tmp_path / "one", tmp_path / "two") > 1e-4
    assert torch.isfinite(torch.tensor(result(tmp_path / "two")["loss"]))
