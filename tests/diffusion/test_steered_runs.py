"""Runs that condition images steer: trained, judged, drawn from, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_peft.data.conditions import MAKERS, Condition
from tests.diffusion.command import here, picture, tuned
from tests.diffusion.tiny_pipelines import SIZE

STEERED = (
    *("--method.name", "scedit", "--method.control", "true", "--method.pre_dim_ratio", "0.25"),
    *("--method.pre_out_channels", "4", "--method.pre_strides", "[1,1,2,1,1,1,1]", "--model.samples.pictures", "2"),
)


def steered(pipeline: Path, root: Path, *words: str, name: str = "edges") -> tuple[str, ...]:
    """Four steps of controllable SCEdit, as words of the command line."""
    pairs = list(zip(*[iter(tuned(pipeline, root))] * 2, strict=True))
    kept = [pair for pair in pairs if not pair[0].startswith(("--method.", "--model.samples.prompts"))]
    return (*(word for pair in kept for word in pair), *STEERED, "--data.condition.name", name, *words)


@pytest.fixture(scope="module")
def run(pipelines: Path, captioned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that edges steer."""
    from peft_runs.commands import main
    from peft_runs.families import DIFFUSION

    out = tmp_path_factory.mktemp("steered") / "run"
    assert main(DIFFUSION, ["train", *steered(pipelines / "sd1", captioned), "--out", str(out)]) == 0
    return out


def test_run_leaves_grids_of_pictures_conditions_and_samples(run: Path) -> None:
    with Image.open(run / "samples" / "step-00000000.png") as sheet:
        assert sheet.size == (4 * SIZE, 2 * SIZE)  # picture, condition, two seeds
        cells = [sheet.crop((column * SIZE, 0, (column + 1) * SIZE, SIZE)) for column in range(2)]
    assert np.array_equal(np.asarray(Condition("edges")(cells[0])), np.asarray(cells[1]))
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == 4
    assert "edges of each picture" in page
    assert "StableDiffusionSCEditPipeline" in page
    assert Condition.load(run / "adapter") == Condition("edges")


def test_evaluation_repeats_the_figures_and_pictures_matter(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = json.loads((run / "result.json").read_text(encoding="utf-8"))

    def figures() -> float:
        code, said, _ = here(capsys, "evaluate", run)
        assert code == 0
        return json.loads(said.splitlines()[-1])["explained"]

    assert figures() == first["explained"]
    monkeypatch.setitem(MAKERS, "edges", lambda picture, condition: torch.zeros_like(picture))
    assert figures() != first["explained"]


def test_caches_of_latents_serve_any_condition(
    pipelines: Path, captioned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("edges", "colors"):
        words = steered(pipelines / "sd1", captioned, "--data.cache", str(tmp_path / "cache"), name=name)
        assert here(capsys, "train", *words, "--out", tmp_path / name)[0] == 0
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("edges", "colors")]
    assert results[0]["explained"] != results[1]["explained"]


def test_several_conditions_are_drawn_from_one_picture_or_from_ready_images(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(0).save(tmp_path / "picture.png")
    words = ("sample", "--adapter", f"{run}:0.7", "--adapter", run, "--prompt", "star", "--steps", 2, "--seeds", 0, 1)
    assert (
        here(capsys, *words, "--image", tmp_path / "picture.png", "--compare-base", "--out", tmp_path / "one")[0] == 0
    )
    with Image.open(tmp_path / "one" / "grid.png") as sheet:
        assert sheet.size == (6 * SIZE, SIZE)
        condition = sheet.crop((0, 0, SIZE, SIZE))
    condition.save(tmp_path / "ready.png")
    ready = ("--condition", tmp_path / "ready.png") * 2
    assert here(capsys, *words, *ready, "--out", tmp_path / "two")[0] == 0
    one, two = (np.asarray(Image.open(tmp_path / name / "000_seed1.png")) for name in ("one", "two"))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, np.asarray(Image.open(tmp_path / "one" / "000_seed1_base.png")))


# --- bad input -------------------------------------------------------------------------------------------------------
REFUSED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "no condition": (
        ("--data.condition.name", "null", "--model.samples.pictures", "0"),
        ("data.condition.name", "edges"),
    ),
    "nothing to steer": (("--method.control", "false"), ("method.control true", "'edges'")),
    "unknown condition": (("--data.condition.name", "edgs"), ("data.condition.name", "edgs")),
    "prompts without pictures": (("--model.samples.prompts", "[star]"), ("model.samples.pictures",)),
    "pictures without condition": (("--data.condition.name", "null"), ("model.samples.pictures is 2",)),
    "strides": (("--method.pre_strides", "[1,1,2,1,2,1,2]"), ("2 x 2 pixels", "method.pre_strides for 8")),
    "channels": (("--method.pre_in_channels", "1"), ("3 channels", "method.pre_in_channels is 1")),
    "threshold": (("--data.condition.threshold", "0.5"), ("data.condition.threshold", "[0, 0.5)")),
    "patches": (("--data.condition.patches", "0"), ("data.condition.patches", "at least 1")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_steered_is_one_sentence(
    case: str, pipelines: Path, captioned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, parts = REFUSED[case]
    dropped = set(changes[::2])
    pairs = zip(*[iter(steered(pipelines / "sd1", captioned))] * 2, strict=True)
    kept = [word for pair in pairs if pair[0] not in dropped for word in pair]
    code, _, said = here(capsys, "train", *kept, *changes, "--out", tmp_path / "run")
    assert code in (1, 2)
    assert len(said.splitlines()) == 1, said
    for part in parts:
        assert part in said


UNDRAWN: dict[str, tuple[tuple[str, ...], str]] = {
    "no picture": ((), "is steered by pictures: add --image"),
    "both": (("--image", "{good}", "--condition", "{good}"), "either computed from --image"),
    "no such picture": (("--image", "nowhere.png"), "there is no picture nowhere.png"),
    "no picture at all": (("--image", "{text}"), "is not a readable picture"),
    "three for one prompt": (("--image", "{good}") * 3, "3 pictures are given for 1 prompts"),
    "wrong size": (("--condition", "{good}"), "24 x 20 of mode RGB, expected 16 x 16 of mode RGB"),
    "wrong mode": (("--condition", "{grey}"), "16 x 16 of mode L, expected 16 x 16 of mode RGB"),
    "two for one adapter": (("--condition", "{good}") * 2, "2 condition images are given for 1 adapters"),
}


@pytest.mark.parametrize("case", UNDRAWN)
def test_what_cannot_be_drawn_is_one_sentence(
    case: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, part = UNDRAWN[case]
    files = {"good": tmp_path / "good.png", "grey": tmp_path / "grey.png", "text": tmp_path / "text.png"}
    picture(0).save(files["good"])
    Image.new("L", (SIZE, SIZE)).save(files["grey"])
    files["text"].write_text("no picture")
    words = [word.format(**files) for word in changes]
    code, _, said = here(capsys, "sample", "--adapter", run, "--prompt", "star", *words, "--out", tmp_path / "out")
    assert code in (1, 2)
    assert part in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()
