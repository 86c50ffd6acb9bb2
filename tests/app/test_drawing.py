"""The process that draws, through the server's side of it: rows, strengths, conditions, layers; and how it breaks."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from peft import LoraConfig
from PIL import Image

import diffusion_peft as dp
from diffusion_peft.pipelines.opening import open_pipeline
from peft_compare.drawing.drawer import Drawer, picture
from peft_compare.drawing.requests import Draw, Layers, Line, Localize, LoraFor, Patch, Worn
from peft_runs.errors import RunError, UsageError
from tests.app.drawing_adapters import make

QUICK = {"seeds": (0, 1), "steps": 2}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def drawer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drawer]:
    drawer = Drawer(threads=1, log=tmp_path_factory.mktemp("log") / "log.txt")
    yield drawer
    drawer.close()


def pixels(row: dict, place: int = 0) -> np.ndarray:
    return np.asarray(picture(row["pictures"][place]))


def test_rows_have_the_same_prompts_and_seeds_and_times(drawer: Drawer, adapters: dict[str, str]) -> None:
    rows = (
        Line("base"),
        *(Line(name, (Worn(adapters["lora"], weight),)) for name, weight in (("0", 0), ("1", 1), ("1.5", 1.5))),
        Line("both", (Worn(adapters["lora"]), Worn(adapters["bitfit"], 0.5))),
        Line("two", (Worn(adapters["lora"], 0.5), Worn(adapters["other"], 0.5))),
        Line("base again"),
    )
    told = []
    found = drawer.ask(Draw("mini_sd", rows, ("red heart", "cat"), **QUICK), lambda *words: told.append(words))["rows"]
    assert [row["name"] for row in found] == [row.name for row in rows]
    assert all(len(row["pictures"]) == 4 and row["milliseconds"] > 0 for row in found)
    base = pixels(found[0])
    assert base.shape == (64, 64, 3)
    assert (pixels(found[1]) == base).all()
    assert (pixels(found[6]) == base).all()
    change = [np.abs(pixels(row).astype(float) - base).mean() for row in found]
    assert 0 < change[2] < change[3]
    assert all(each > 0 for each in change[4:6])
    assert [words[1:] for words in told] == [(number, 7) for number in range(7)]


def test_one_step_and_many_stand_side_by_side(drawer: Drawer) -> None:
    rows = (Line("one", steps=1, guidance=1.0), Line("eight", steps=8))
    one, many = drawer.ask(Draw("mini_sd", rows, ("red heart",), seeds=(0,)))["rows"]
    assert one["milliseconds"] < many["milliseconds"]
    assert (pixels(one) != pixels(many)).any()


def test_a_row_that_cannot_be_drawn_says_why_and_the_others_are_drawn(drawer: Drawer, adapters: dict[str, str]) -> None:
    nowhere = str(Path(adapters["lora"], "nowhere"))
    rows = (Line("gone", (Worn(nowhere),)), Line("edges", (Worn(adapters["scedit"]),)), Line("base"))
    gone, edges, base = drawer.ask(Draw("mini_sd", rows, ("red heart",), **QUICK))["rows"]
    assert "nowhere" in gone["failure"]
    assert "steered by edges" in edges["failure"]
    assert base["pictures"]


def test_drawn_lines_and_pictures_steer(drawer: Drawer, adapters: dict[str, str], tmp_path: Path) -> None:
    lines, photo = tmp_path / "lines.png", tmp_path / "photo.png"
    drawing = np.zeros((256, 256, 4), np.uint8)
    drawing[60:68] = 255
    Image.fromarray(drawing).save(lines)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)).save(photo)
    rows = (Line("edges", (Worn(adapters["scedit"]),)), Line("off", (Worn(adapters["scedit"], 0),)), Line("base"))
    by_hand = drawer.ask(Draw("mini_sd", rows, ("red heart",), hints={"edges": str(lines)}, **QUICK))["rows"]
    by_photo = drawer.ask(Draw("mini_sd", rows, ("red heart",), image=str(photo), **QUICK))["rows"]
    condition = np.asarray(picture(by_hand[0]["conditions"][0]))
    assert (condition[15:17] == 255).all()
    assert (condition[:15] == 0).all()
    assert (pixels(by_hand[0]) != pixels(by_photo[0])).any()
    assert (pixels(by_hand[1]) == pixels(by_hand[2])).all()


def test_the_layer_that_writes_is_found_patched_and_made_a_lora_of(drawer: Drawer) -> None:
    listed = drawer.ask(Layers("mini_sd"))
    assert [layer["index"] for layer in listed["layers"]] == list(range(10))
    source, target = 'the word "CAT" in red on white', 'the word "SUN" in red on white'
    told = []
    request = Localize("mini_sd", ((source, target),), steps=6, reader="letters")
    found = drawer.ask(request, lambda *words: told.append(words[1:]))
    assert max(found["layers"], key=lambda layer: layer["score"])["index"] == 7
    assert told[-1][0] == told[-1][1]
    edited = drawer.ask(Patch("mini_sd", source, target, (7,), seeds=(42, 43), steps=6))
    assert len(edited["edited"]["pictures"]) == len(edited["edited"]["read"]) == 2
    assert edited["share"] == pytest.approx(listed["layers"][7]["parameters"] / listed["total"])
    config = drawer.ask(LoraFor("mini_sd", (7,), r=2))
    model = dp.add_adapter(
        open_pipeline("mini_sd"), LoraConfig(**{k: v for k, v in config["settings"].items() if k != "name"})
    )
    assert config["trains"] == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("request_of", "said"),
    [
        (lambda: Draw("mini_sd", (Line("base"),), ()), "nothing is asked for"),
        (lambda: Draw("mini_sd", (Line("base"),), ("x",), steps=1000), "steps must be between 1 and 100"),
        (lambda: Draw("mini_sd", (Line("base"),), ("x" * 501,)), "500 letters"),
        (lambda: Draw("mini_sd", (Line("base"),), ("x",) * 65, seeds=(0,)), "number of pictures"),
        (lambda: Worn("folder", 2.0), "strength"),
    ],
)
def test_what_is_too_much_is_refused_before_any_work(request_of, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        request_of()


def test_an_unknown_pipeline_names_the_nearest(drawer: Drawer) -> None:
    with pytest.raises(UsageError, match="did you mean 'mini_sd'"):
        drawer.ask(Layers("mini_sx"))


def test_what_takes_too_long_is_stopped(drawer: Drawer) -> None:
    drawer.ask(Layers("mini_sd"))
    drawer.seconds, before = 0.05, drawer.seconds
    with pytest.raises(RunError, match="fewer pictures or steps"):
        drawer.ask(Draw("mini_sd", (Line("base"),), ("red heart",), steps=50))
    drawer.seconds = before
    assert drawer.process is None


def test_a_broken_process_fails_one_request_and_too_many_are_told_to_come_again(drawer: Drawer) -> None:
    assert drawer.ask(Layers("mini_sd"))["total"] > 0  # a new one, after the one that was stopped
    failed: list[Exception] = []

    def long() -> None:
        try:
            drawer.ask(Draw("mini_sd", (Line("base"),), ("red heart",), seeds=tuple(range(16)), steps=100))
        except RunError as error:
            failed.append(error)

    several = [threading.Thread(target=long) for _ in range(7)]
    for thread in several:
        thread.start()
    while drawer.inside < 7:
        time.sleep(0.01)
    with pytest.raises(UsageError, match="try again"):
        drawer.ask(Layers("mini_sd"))
    process = drawer.process
    assert process is not None
    drawer._closed = True  # those that wait are not to start another
    process.kill()
    for thread in several:
        thread.join()
    assert sum("broke down" in str(error) for error in failed) == 1
    assert sum("shutting down" in str(error) for error in failed) == 6


def test_the_process_ends_with_its_input() -> None:
    words = [sys.executable, "-P", "-m", "peft_compare.drawing.worker"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=60) == 0
