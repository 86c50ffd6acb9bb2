"""Bad adapters through the commands: one sentence, exit code 1 or 2, nothing half-written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.kernels.saved_adapters import CONFIG, WEIGHTS, edit, saved, setting
from tests.runs.command import here, process
from tests.runs.saved import base, save_base


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good adapter in ``adapter`` and its base model in ``base.safetensors``."""
    root = tmp_path_factory.mktemp("whole")
    saved(root / "adapter", "snell", model=base())
    save_base(root / "base.safetensors")
    return root


def bytes_of(folder: Path, change: Callable[[bytes], bytes]) -> None:
    (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes()))


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def elsewhere(folder: Path, name: str) -> None:
    (folder / name).rename(folder.parent / f"moved-{name}")
    (folder / name).symlink_to(Path("..") / f"moved-{name}")


A = "base_model.model.blocks.0.attn.qkv.snell_adapter.weight_q.A"  # [2, 128, 4]
# What is done to the folder -> what the sentence must hold; the exit code is 1.
BAD: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "truncated file": (lambda f: bytes_of(f, lambda b: b[:-100]), (WEIGHTS, "expected", "bytes, found")),
    "altered byte in the header": (
        lambda f: bytes_of(f, lambda b: b.replace(b"qkv.snell_adapter.weight_q.A", b"qkw.snell_adapter.weight_q.A", 1)),
        (WEIGHTS, "missing", A, "did you mean", "61 of 62 tensors in the file match"),
    ),
    "altered length of the header": (lambda f: bytes_of(f, lambda b: b"\xff" * 7 + b[7:]), (WEIGHTS, "header")),
    "NaN": (lambda f: edit(f, lambda t: t[A][0, 0].fill_(torch.nan)), (WEIGHTS, A, "NaN", "4 of 1,024")),
    "another model": (
        lambda f: edit(f, lambda t: t.update({A: torch.zeros(2, 768, 4)})),
        (WEIGHTS, A, "(2, 768, 4)", "(2, 128, 4)"),
    ),
    "unknown config field": (lambda f: setting(f, sparcity=0.5), (CONFIG, "'sparcity'", "'sparsity'")),
    "value out of range": (lambda f: setting(f, sparsity=1.5), (CONFIG, "sparsity", "[0, 1]", "1.5")),
    "unknown peft_type": (lambda f: setting(f, peft_type="SNEL"), (CONFIG, "'SNEL'", "'SNELL'")),
    "class path": (lambda f: setting(f, class_path="os.system"), (CONFIG, "'class_path'")),
    "pickle": (pickled, ("adapter_model.bin", "pickle", "convert")),
    "weights elsewhere": (lambda f: elsewhere(f, WEIGHTS), (WEIGHTS, "leads out of")),
    "config elsewhere": (lambda f: elsewhere(f, CONFIG), (CONFIG, "leads out of")),
    "missing weights": (lambda f: (f / WEIGHTS).unlink(), (WEIGHTS, "missing")),
    "missing config": (lambda f: (f / CONFIG).unlink(), (CONFIG, "missing")),
    "missing folder": (shutil.rmtree, ("no adapter",)),
}
COMMANDS = {
    "merge": ("--out", "out.safetensors", "--checkpoint", "base.safetensors"),
    "export": ("--to", "peft", "--out", "out"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_adapter(
    case: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    damage, parts = BAD[case]
    shutil.copytree(whole, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    damage(Path("adapter"))
    before = sorted(Path().rglob("*"))
    for command, words in COMMANDS.items():
        code, said, error = here(capsys, command, "adapter", *words)
        assert (code, said, error.count("\n")) == (1, "", 0), error
        for part in parts:
            assert part in error
        assert sorted(Path().rglob("*")) == before


# Command, the path it is given, further words -> exit code and what the sentence must hold; each a process of its own.
PROCESSES = {
    "cut off": ("merge", "cut", ("--out", "x.safetensors"), 1, ("cut", "expected", "bytes, found")),
    "pickle": ("inspect", "adapter.bin", (), 1, ("adapter.bin", "pickle", "convert")),
    "no path": ("inspect", "nowhere", (), 2, ("nowhere",)),
}


@pytest.mark.parametrize("case", PROCESSES)
def test_process_ends_with_one_sentence(case: str, whole: Path, tmp_path: Path) -> None:
    command, path, words, code, parts = PROCESSES[case]
    shutil.copytree(whole / "adapter", tmp_path / "cut")
    bytes_of(tmp_path / "cut", lambda content: content[:-1])
    torch.save({"a": torch.zeros(1)}, tmp_path / "adapter.bin")
    before = sorted(os.listdir(tmp_path))
    run = process(command, tmp_path / path, *words)
    assert (run.returncode, run.stdout) == (code, "")
    assert run.stderr.startswith("vision-peft: ")
    assert run.stderr.count("\n") == 1
    for part in parts:
        assert part in run.stderr
    assert sorted(os.listdir(tmp_path)) == before


def test_convert_reads_tensors_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    tensors = {"a": torch.arange(4.0), "b": torch.ones(2, 3).T}
    torch.save(tensors, tmp_path / "good.bin")
    torch.save({"a": "text"}, tmp_path / "text.bin")
    torch.save({"base_model": tensors, "epoch": 3, "metrics": {"acc": 0.5}}, tmp_path / "training.pth")
    torch.save(Harm(), tmp_path / "harm.bin")
    for name in ("good.bin", "training.pth"):
        code, said, warned = here(capsys, "convert", tmp_path / name, "--out", tmp_path / f"{name}.safetensors")
        assert (code, "2 tensors" in said, "no sandbox" in warned) == (0, True, True)
        written = load_file(tmp_path / f"{name}.safetensors")
        assert written.keys() == tensors.keys()
        assert all(torch.equal(written[key], tensors[key]) for key in tensors)
    for name, expected, part in (
        ("text.bin", 1, "must hold tensors by name"),
        ("harm.bin", 1, "cannot be read as tensors alone"),
        ("none.bin", 2, "no file"),
    ):
        code, _, error = here(capsys, "convert", tmp_path / name, "--out", tmp_path / "out.safetensors")
        assert (code, part in error) == (expected, True), error
        assert not (tmp_path / "out.safetensors").exists()
    assert not (tmp_path / "harmed").exists()


class Harm:
    """A pickle that would write a file when it is read freely."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, ("touch harmed",)
