"""`diffusion-peft localize` as people run it: found, drawn, stopped and gone on with."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import diffusion_peft as dp
from tests.diffusion.command import here
from tests.diffusion.tiny_pipelines import SIZE
from tests.runs.command import DIFFUSION_PROGRAM, one_thread, process

PAIRS = [("a circle in red", "a star"), ("a star in blue", "a square"), ("a square", "a circle")]


def asked(pipelines: Path, out: Path, *more: object) -> tuple[str, ...]:
    """A small search, one pair a call."""
    pairs = [word for pair in PAIRS for word in ("--pair", *pair)]
    small = ("--steps", 2, "--size", SIZE, "--batch", 1, "--metric", "vit_mini", "--sets", 2)
    return tuple(map(str, ("localize", "--pipeline", pipelines / "sd1", *pairs, *small, "--out", out, *more)))


def test_a_stopped_search_goes_on(pipelines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, whole = tmp_path / "stopped", tmp_path / "whole"
    running = subprocess.Popen(
        [str(DIFFUSION_PROGRAM), *asked(pipelines, out)], env=one_thread(), start_new_session=True
    )
    while running.poll() is None and not (out / "localization.json").exists():
        time.sleep(0.01)
    assert running.poll() is None, "the search ended before it could be killed"
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert not (out / "report.html").exists()
    done = process("localize", "--resume", "--out", out, program=DIFFUSION_PROGRAM)
    assert done.returncode == 0, done.stderr
    assert "best layers, ssim_target" in done.stdout
    assert here(capsys, *asked(pipelines, whole))[0] == 0
    assert dp.Localization.load(out / "localization.json") == dp.Localization.load(whole / "localization.json")
    looks_as_it_should(out)


def looks_as_it_should(out: Path) -> None:
    """Every layer and the best two are scored, and seen in the pictures and on the page."""
    report = dp.Localization.load(out / "localization.json")
    assert report.done == len(PAIRS) * (4 + 1)
    assert Image.open(out / "grid.png").size == ((2 + 3 + 1) * SIZE, len(PAIRS) * SIZE)
    assert min(Image.open(out / "layers.png").size) > 300
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in report.names)
    assert "a circle in red → a star" in page
    assert '<h2 id="grids">' not in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--layers", "9"), "there is no text layer 9"),
        (("--metric", "mse"), "'mse' is measured already"),
        (("--score", "ssim_targets"), "did you mean 'ssim_target'"),
        (("--reader", "leters"), "did you mean 'letters'"),
        (("--steps", "0"), "`steps` must be at least 1; found 0"),
        (("--prompt", 'a sign "A"'), "all prompts or all (source, target) pairs"),
        (("--prompts", "nowhere.txt"), "the prompts nowhere.txt cannot be read"),
    ],
)
def test_what_cannot_be_searched_is_told(
    words: tuple[str, ...], message: str, pipelines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, error = here(capsys, *asked(pipelines, tmp_path / "out", *words))
    assert code == 2
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing to search"),
        (("--pipeline", "mini_sd"), "nothing is asked for"),
        (("--resume",), "holds no search that was stopped"),
        (("--resume", "--steps", "3"), "takes --out FOLDER alone"),
        (("--pipeline", "mini_sd", "--prompt", "a sign"), "needs one text in quotes"),
    ],
)
def test_half_a_question_is_refused(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, error = here(capsys, "localize", *words, "--out", tmp_path / "out")
    assert code == 2
    assert message in error


def test_a_line_of_three_prompts_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a sign\ta word\ta star\n", encoding="utf-8")
    code, _, error = here(capsys, "localize", "--pipeline", "mini_sd", "--prompts", file, "--out", tmp_path / "out")
    assert code == 2
    assert "prompts.txt has 3 parts, expected SOURCE, TARGET: a sign" in error


def test_prompts_come_from_a_file(pipelines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text('a "circle" in red\n\na "star"\n', encoding="utf-8")
    small: tuple[Any, ...] = ("--steps", 1, "--size", SIZE, "--layers", 1, "--sets", 1)
    code, said, _ = here(
        capsys, "localize", "--pipeline", pipelines / "sd1", "--prompts", file, *small, "--out", tmp_path / "out"
    )
    assert code == 0
    assert "1  up_blocks" in said or "1  down_blocks" in said or "1  mid_block" in said
    found = json.loads((tmp_path / "out" / "localization.json").read_text(encoding="utf-8"))
    assert found["settings"]["prompts"][0] == ['a "circle" in red', 'a "star" in red']
