"""A tuning that was killed and resumed ends as the one that was not."""

from pathlib import Path

import pytest

from tests.diffusion.command import here, tuned
from tests.runs.command import DIFFUSION_PROGRAM, killed_at, lines, result


def test_killed_run_ends_bit_equal(
    pipelines: Path, captioned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    varied = (
        *("--run.epochs", "6", "--run.checkpoint_steps", "3", "--run.evaluate_epochs", "6"),
        *("--data.prior.prompt", "a star", "--data.prior.count", "4", "--data.prior.steps", "1", "--data.pool", "3"),
    )
    words = (*tuned(pipelines / "sd1", captioned), *varied)
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    assert here(capsys, "train", *words, "--out", unbroken)[0] == 0
    killed_at(10, "train", *words, "--out", broken, program=DIFFUSION_PROGRAM)
    assert not (broken / "result.json").exists()
    code, said, error = here(capsys, "train", "--resume", "--out", broken)
    assert code == 0, error
    assert int(said.partition("going on after step ")[2].split()[0]) >= 9
    assert lines(broken) == lines(unbroken)
    assert result(broken)["loss"] == result(unbroken)["loss"]
    for name in ("adapter/adapter_model.safetensors", "samples/step-00000024.png", "class_pictures/00003.png"):
        assert (broken / name).read_bytes() == (unbroken / name).read_bytes()
