"""Processes that share a batch, and parts of a batch one after another, train as one process with the whole batch."""

import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.runs.command import SMALL, process, result

# No dropout. Adam's first steps are gradient / |gradient|, which magnifies rounding: a small rate keeps it below 1e-5.
WORDS = (*SMALL, "--method.name", "full", "--data.variation.crop_padding", "2", "--optim.lr", "0.0002")


def largest_difference(one: Path, other: Path) -> float:
    left, right = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (one, other))
    assert left.keys() == right.keys()
    return max((left[name] - right[name]).abs().max().item() for name in left)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that the others are held against."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    assert process("train", *WORDS, "--out", folder).returncode == 0
    return folder


@pytest.mark.parametrize("share", ["two processes", "four parts"])
def test_sharing_a_batch_changes_nothing(share: str, alone: Path, tmp_path: Path) -> None:
    if share == "two processes":
        torchrun = (str(Path(sys.executable).with_name("torchrun")), "--nproc_per_node", "2", "--no-python")
        run = process("train", *WORDS, "--out", tmp_path, before=torchrun)
    else:
        run = process("train", *WORDS, "--run.accumulate", "4", "--out", tmp_path)
    assert run.returncode == 0, run.stderr
    assert result(tmp_path)["processes"] == (2 if share == "two processes" else 1)
    assert largest_difference(alone, tmp_path) <= 1e-5
    assert abs(result(alone)["loss"] - result(tmp_path)["loss"]) <= 1e-5


def test_processes_divide_a_budget_as_one_does(tmp_path: Path) -> None:
    words = (*WORDS, "--method.name", "snella", "--method.r", "4", "--method.dropout", "0", "--method.drop_path", "0")
    runs = [process("train", *words, "--run.epochs", "3", "--out", tmp_path / "alone")]
    torchrun = (str(Path(sys.executable).with_name("torchrun")), "--nproc_per_node", "2", "--no-python")
    runs.append(process("train", *words, "--run.epochs", "3", "--out", tmp_path / "two", before=torchrun))
    assert [run.returncode for run in runs] == [0, 0], runs[-1].stderr
    alone, two = (load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("alone", "two"))
    shares = [name for name in alone if name.endswith(".sparsity")]
    assert len({alone[name].item() for name in shares}) > 6
    entries = [alone[name.replace("sparsity", x)].shape[1] for name in shares for x in "AB"]
    sizes = {name: m * n for name, n, m in zip(shares, entries[::2], entries[1::2], strict=True)}
    for name, size in sizes.items():  # rounding of the summed gradients may move a few entries
        assert abs(alone[name].item() - two[name].item()) * size <= 2


def test_training_moves_what_is_compared(alone: Path, tmp_path: Path) -> None:
    """The comparison above could not fail if a run wrote the weights it began with."""
    run = process("train", *WORDS, "--run.epochs", "1", "--out", tmp_path)
    assert run.returncode == 0, run.stderr
    assert largest_difference(alone, tmp_path) > 1e-4
