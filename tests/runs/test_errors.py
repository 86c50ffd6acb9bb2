"""What cannot be done is refused with one sentence, the right exit code, and nothing half-written."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.runs.command import PROGRAM, SMALL, here, one_thread, process

# words after the command -> exit code and what the sentence must hold
REFUSED = {
    "unknown command": (("trian",), 2, ("'trian'", "'train'")),
    "no recipe": (("train",), 2, ("--recipe",)),
    "unknown recipe": (("train", "--recipe", "digits_snel"), 2, ("'digits_snel'", "'digits_snell'")),
    "missing recipe file": (("train", "--recipe", "none.yaml"), 2, ("none.yaml",)),
    "unknown section": (("train", *SMALL, "--optimizer.lr", "1"), 2, ("'optimizer.lr'", "'optim.lr'")),
    "unknown key": (("train", *SMALL, "--optim.learning", "1"), 2, ("'optim.learning'",)),
    "unknown nested key": (("train", *SMALL, "--data.variation.flp", "1"), 2, ("'data.variation.flip'",)),
    "whole section": (("train", *SMALL, "--optim", "x.yaml"), 2, ("'optim'",)),
    "class path": (("train", *SMALL, "--optim.class_path", "os.system"), 2, ("'optim.class_path'",)),
    "no value": (("train", *SMALL, "--optim.lr"), 2, ("--optim.lr", "needs a value")),
    "no flag": (("train", *SMALL, "lr"), 2, ("'lr'",)),
    "wrong type": (("train", *SMALL, "--run.epochs", "many"), 2, ("run.epochs", "many", "int")),
    "wrong choice": (("train", *SMALL, "--run.precision", "fp8"), 2, ("run.precision", "fp8", "bf16")),
    "out of range": (("train", *SMALL, "--optim.lr", "-1"), 2, ("optim.lr", "above 0", "-1")),
    "unknown task": (("train", *SMALL, "--task", "clasification"), 2, ("'clasification'", "'classification'")),
    "unknown method": (("train", *SMALL, "--method.name", "snel"), 2, ("'snel'", "'snell'")),
    "unknown method field": (("train", *SMALL, "--method.name", "snell", "--method.rr", "2"), 2, ("'method.r'",)),
    "field of another method": (("train", *SMALL, "--method.name", "ssf", "--method.r", "2"), 2, ("'method.r'",)),
    "refused method value": (("train", *SMALL, "--method.name", "snell", "--method.r", "0"), 2, ("r ", "0")),
    "unknown target": (
        ("train", *SMALL, "--method.name", "ssf", "--method.target_modules", "[atn.qkv]"),
        *(2, ("'atn.qkv'", "'attn.qkv'")),
    ),
    "unknown model": (("train", *SMALL, "--model.name", "vit_mino"), 2, ("'vit_mino'", "'vit_mini'")),
    "unlike any model": (("train", *SMALL, "--model.name", "qqq"), 2, ("'qqq': known are", " others")),
    "unknown data": (("train", *SMALL, "--data.name", "digit"), 2, ("'digit'", "'digits'")),
    "unknown timm data": (("train", *SMALL, "--data.name", "torch/cifar11"), 2, ("torch/cifar1",)),
    "unknown part": (("train", *SMALL, "--data.test_split", "tets"), 2, ("'tets'", "'test'")),
    "no data folder": (("train", *SMALL, "--data.name", "folder"), 2, ("--data.root",)),
    "missing data folder": (("train", *SMALL, "--data.name", "folder", "--data.root", "/nowhere"), 1, ("/nowhere",)),
    "too many pictures": (("train", *SMALL, "--data.train_size", "5000"), 1, ("5000", "1000")),
    "batch larger than data": (("train", *SMALL, "--optim.batch_size", "61"), 2, ("61", "60")),
    "batch not shared equally": (("train", *SMALL, "--run.accumulate", "3"), 2, ("20", "3 parts")),
    "unknown tracker": (("train", *SMALL, "--run.tracker", "tensorbord"), 2, ("'tensorbord'", "'tensorboard'")),
    "precision of a GPU": (("train", *SMALL, "--run.precision", "fp16", "--run.device", "cpu"), 2, ("fp16", "GPU")),
    "nothing to resume": (("train", "--resume", "--out", "none"), 2, ("nothing to resume", "none")),
    "resume without folder": (("train", "--resume"), 2, ("--out",)),
    "nothing to evaluate": (("evaluate", "none"), 2, ("none", "result.json")),
    "evaluate what": (("evaluate",), 2, ("--recipe",)),
    "settings of no method": (("methods", "snel"), 2, ("'snell'",)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusal(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    words, code, parts = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    out = ("--out", "run") if words[0] == "train" and "--resume" not in words else ()
    got, _, said = here(capsys, *words, *out)
    assert (got, len(said.splitlines())) == (code, 1), said
    for part in parts:
        assert part in said
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("result.json"))


def test_a_place_that_cannot_be_made_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").touch()
    code, _, said = here(capsys, "train", *SMALL, "--out", tmp_path / "file" / "run")
    assert (code, said.strip()) == (1, f"vision-peft: {tmp_path / 'file' / 'run'}: Not a directory")


def test_refusal_ends_the_process() -> None:
    run = process("train", "--recipe", "digits_snel")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("vision-peft: unknown recipe 'digits_snel'")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with an adapter."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    run = process("train", *SMALL, "--method.name", "bitfit", "--run.epochs", "1", "--out", folder)
    assert run.returncode == 0, run.stderr
    return folder


def test_a_finished_run_is_not_begun_again(finished: Path, capsys: pytest.CaptureFixture) -> None:
    code, _, said = here(capsys, "train", *SMALL, "--out", finished)
    assert code == 2
    assert "--resume" in said
    code, out, _ = here(capsys, "train", "--resume", "--out", finished)
    assert code == 0
    assert "finished" in out


def test_a_resumed_run_keeps_its_settings(finished: Path, capsys: pytest.CaptureFixture) -> None:
    code, _, said = here(capsys, "train", "--resume", "--out", finished, "--optim.lr", "0.5")
    assert code == 2
    assert "optim.lr" in said
    assert "0.5" in said


def test_evaluation_repeats_the_accuracy(finished: Path, capsys: pytest.CaptureFixture) -> None:
    code, out, _ = here(capsys, "evaluate", finished)
    assert code == 0
    again = json.loads(out.splitlines()[-1])
    result = json.loads((finished / "result.json").read_text())
    assert again["samples"] == 797
    assert (again["accuracy"], again["loss"]) == pytest.approx((result["accuracy"], result["loss"]), abs=1e-6)


def spoil(file: Path, how: str) -> None:
    data = bytearray(file.read_bytes())
    if how == "cut off":
        data = data[: len(data) // 2]
    elif how == "altered header":
        data[10:14] = b"####"
    file.write_bytes(data)


@pytest.mark.parametrize("how", ["cut off", "altered header"])
def test_damaged_adapter_is_refused(how: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    spoil(run / "adapter" / "adapter_model.safetensors", how)
    code, _, said = here(capsys, "evaluate", run)
    assert (code, len(said.splitlines())) == (1, 1), said
    assert "adapter_model.safetensors" in said


def test_adapter_of_another_model_is_refused(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    file = run / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    key = min(key for key in tensors if "qkv" in key)
    save_file({**tensors, key: torch.zeros(192)}, file)
    code, _, said = here(capsys, "evaluate", run)
    assert (code, len(said.splitlines())) == (1, 1), said
    for part in (key, "192", "384"):
        assert part in said


@pytest.mark.parametrize("how", ["cut off", "altered header"])
def test_damaged_checkpoint_is_refused(how: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "result.json").unlink()
    (checkpoint,) = (run / "checkpoint").iterdir()
    spoil(checkpoint / "model.safetensors", how)
    code, _, said = here(capsys, "train", "--resume", "--out", run)
    assert (code, len(said.splitlines())) == (1, 1), said
    assert checkpoint.name in said
    assert not (run / "result.json").exists()


def pictures(root: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("a", "b"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(12):
                Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / f"{index}.png")


@pytest.mark.parametrize("cache", ["true", "false"])
def test_corrupt_picture_is_named(cache: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pictures(tmp_path / "data")
    (tmp_path / "data" / "train" / "b" / "7.png").write_bytes(b"no picture")
    words = (*SMALL, "--data.name", "folder", "--data.root", tmp_path / "data", "--data.train_size", "null")
    more = ("--data.cache", cache, "--run.workers", "1", "--out", tmp_path / "run")
    code, _, said = here(capsys, "train", *words, *more)
    assert (code, len(said.splitlines())) == (1, 1), said
    assert "train/b/7.png" in said


def test_class_without_training_pictures_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pictures(tmp_path)
    shutil.copytree(tmp_path / "test" / "a", tmp_path / "test" / "c")
    words = (*SMALL, "--data.name", "folder", "--data.root", tmp_path, "--data.train_size", "null")
    code, _, said = here(capsys, "train", *words, "--out", tmp_path / "run")
    assert code == 1
    assert "'c'" in said


def test_loss_that_is_no_number_stops_the_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    words = (*SMALL, "--optim.lr", "1e30", "--optim.warmup_epochs", "0", "--run.checkpoint_steps", "1", "--out", run)
    code, _, said = here(capsys, "train", *words)
    assert (code, len(said.splitlines())) == (1, 1), said
    assert "at step " in said
    (kept,) = (run / "checkpoint").iterdir()
    assert str(kept) in said
    step = int(said.partition("at step ")[2].partition(":")[0])
    assert kept.name == f"step-{step - 1:08d}"
    assert not (run / "result.json").exists()
    assert not (run / "adapter").exists()


def small_disk() -> list[str]:
    """What mounts a disk of 2 MB on /mnt for one command alone; empty where that is not allowed."""
    mount = 'mount -t tmpfs -o size=2m none /mnt && exec "$@"'
    prefix = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    tried = subprocess.run([*prefix, "true"], capture_output=True) if shutil.which("unshare") else None
    return prefix if tried is not None and tried.returncode == 0 else []


@pytest.mark.skipif(not small_disk(), reason="no small disk can be mounted here")
def test_full_disk_leaves_nothing_half_written() -> None:
    """The checkpoint of the whole model (3.6 MB) does not fit: listed in the same mount, since it ends with it."""
    listing = '"$0" "$@"; code=$?; find /mnt -mindepth 1 | sort; exit $code'
    words = [*small_disk(), "sh", "-c", listing, str(PROGRAM), "train", *SMALL, "--out", "/mnt/run"]
    run = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **one_thread()}, timeout=120)
    assert run.returncode == 1, run.stderr
    (said,) = (line for line in run.stderr.splitlines() if line.startswith("vision-peft:"))
    assert "no space is left" in said
    left = {line.rpartition("/")[2] for line in run.stdout.splitlines() if line.startswith("/mnt/run")}
    assert left == {"run", "recipe.yaml", "metrics.jsonl", "checkpoint"}
