"""The report of invented figures: it stands alone, is well-formed, tells no more than was measured, and has figures."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from peft_kernels.registry import methods
from peft_runs.compare_columns import columns_of
from peft_runs.compare_results import Curve, Results, Row, RunResult, Spread
from peft_runs.compare_table import show
from peft_runs.figure import write_figures
from peft_runs.figure_style import MARKERS, SHADES, marker, shade
from peft_runs.report import write_report

VOID = {"meta", "img", "br", "path", "use", "rect", "circle", "line"}
CLASSES = ["nought", "one <b>", "two"]
LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1])


def row(method: str, parameters: int, figures: list[float], failure: str | None = None) -> Row:
    runs = [
        RunResult(
            seed=seed,
            place=f"{method}/seed-{seed}",
            command=f"vision-peft train --recipe tiny_{method} --run.seed {seed}",
            figures={"accuracy": value, "loss": 0.5},
            reloaded_difference=0.0,
            merged_difference=2e-6 if method != "adapter_plus" else None,
            peak_bytes=30_000_000,
            adapter_bytes=50_000,
            predictions=[int(label) for label in (LABELS + (np.arange(8) % 4 == 3)) % 3],
            curve=Curve([2.0, 1.0, 0.4], [1.0, 2.0, 3.0], [0.2, 0.6, value]),
        )
        for seed, value in enumerate(figures)
    ]
    more = len(figures) > 1
    blank = Row(method, "What it does & how", "Some & Others, 2024", f"tiny_{method}", {"optim.lr": 0.01}, failure)
    if failure is not None:
        return blank
    return dataclasses.replace(
        blank,
        trainable_parameters=parameters + 30,
        trainable_parameters_without_head=parameters,
        figures={"accuracy": Spread(float(np.mean(figures)), float(np.std(figures, ddof=1)) if more else None)},
        step_seconds=0.0841,
        peak_bytes=30_000_000,
        adapter_bytes=50_000,
        merged_difference=runs[0].merged_difference,
        merged_reason="a <function> stands between" if method == "adapter_plus" else None,
        runs=runs,
    )


def results(seeds: int) -> Results:
    spread = [0.01 * seed for seed in range(seeds)]
    rows = [
        row("linear_probe", 0, [0.71 + more for more in spread]),
        row("adapter_plus", 12_000, [0.95 + more for more in spread]),
        row("lora", 61_440, [0.93 + more for more in spread]),
        row("snell", 71_680, [], failure="the loss became nan at step 3 <script>"),
    ]
    return Results(
        format=1,
        program="vision-peft",
        created="2026-01-01 10:00",
        recipe="tiny",
        command="vision-peft compare --recipe tiny",
        metric="accuracy",
        columns=columns_of("accuracy", ["accuracy", "loss"]),
        base=None,
        seeds=list(range(seeds)),
        ranked=seeds > 1,
        test_samples=8,
        jobs=2,
        timing={"steps": 10, "threads": 2, "device": "cpu"},
        unmeasured={},
        shared={"model.name": "vit_mini", "model.pretrained": True, "data.name": "tiny", "optim.batch_size": 10},
        machine={"processor": "P", "cores": 2, "memory_bytes": 8e9, "accelerator": None, "threads": 1, "system": "L"},
        versions={"python": "3.11"},
        rows=rows,
    )


def task() -> SimpleNamespace:
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    part = SimpleNamespace(labels=LABELS, picture=lambda index: picture)
    return SimpleNamespace(train_pictures=part, test_pictures=part, classes=CLASSES)


class Outline(HTMLParser):
    """Tags as they open and close, ids, and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.headings: list[dict[str, str | None]] = []
        self.pictures: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if "id" in found:
            self.ids.append(str(found["id"]))
        if tag == "th":
            self.headings.append(found)
        if tag == "img":
            self.pictures.append(found)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Closed at once."""

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module", params=[1, 3], ids=["one seed", "three seeds"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str]:
    target = tmp_path_factory.mktemp("report") / "report.html"
    write_report(results(request.param), task(), target)
    return request.param, target.read_bytes().decode("utf-8", errors="strict")


def test_report_is_well_formed(report: tuple[int, str]) -> None:
    outline = Outline()
    outline.feed(report[1])
    assert report[1].startswith("<!doctype html>")
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    assert all(heading.get("scope") in ("row", "col") for heading in outline.headings)
    assert all(picture["alt"] for picture in outline.pictures)


def test_report_needs_nothing_from_elsewhere(report: tuple[int, str]) -> None:
    assert "://" not in report[1]
    assert "<script" not in report[1]
    assert "@import" not in report[1]
    sources = re.findall(r'src="([^"]{0,30})', report[1])
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_report_escapes_what_it_is_given(report: tuple[int, str]) -> None:
    assert "one &lt;b&gt;" in report[1]
    assert "at step 3 &lt;script&gt;" in report[1]
    assert "a &lt;function&gt; stands between" in report[1]


def test_report_has_both_themes_and_a_narrow_form(report: tuple[int, str]) -> None:
    assert "prefers-color-scheme: dark" in report[1]
    assert report[1].count("<svg aria-hidden") == 4  # two figures, wide and narrow
    assert "#000001" not in report[1]  # no stand-in for a colour is left
    assert report[1].count("var(--ink)") >= 1


def test_one_seed_is_shown_without_deviation(report: tuple[int, str]) -> None:
    seeds, text = report
    cell = re.search(r"<td>(95\.0[^<]*|96\.0[^<]*)</td>", text)
    assert cell is not None
    assert ("±" in cell[1]) == (seeds > 1)
    assert ("nothing is ranked" in text) == (seeds == 1)
    assert text.index(">linear_probe<") < text.index(">adapter_plus<") < text.index(">lora<") < text.index(">snell<")


def test_wrong_answers_are_told_in_words(report: tuple[int, str]) -> None:
    assert "(wrong)" in report[1]
    assert "6 of 8 test pictures are read correctly by all 3 methods" in report[1]


def test_failed_method_has_its_reason(report: tuple[int, str]) -> None:
    assert re.search(r'<tr class="failed">.*?failed: the loss became nan', report[1], re.DOTALL)


@pytest.mark.parametrize("seeds", [1, 3])
def test_figures_are_pictures_of_sensible_size(seeds: int, tmp_path: Path) -> None:
    write_figures(results(seeds), tmp_path / "figures")
    for name in ("accuracy_parameters", "curves"):
        with Image.open(tmp_path / "figures" / f"{name}.png") as picture:
            assert picture.format == "PNG"
            assert 1000 <= picture.width <= 3000
            assert 500 <= picture.height <= 2000
            colours = picture.convert("RGB").getcolors(picture.width * picture.height)
        assert colours is not None
        assert len(colours) > 50  # more than an empty sheet


def test_terminal_table_fits_eighty_columns() -> None:
    console = Console(width=80, force_terminal=True, color_system=None)
    with console.capture() as caught:
        show(results(3), console)
    lines = caught.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("lora") and "94.0" in line for line in lines)
    assert any(line.startswith("snell failed: the loss became nan") for line in lines)


def test_method_keeps_its_look_and_no_two_share_it() -> None:
    looks = {name: (shade(name), marker(name)) for name in methods()}
    assert len(set(looks.values())) == len(looks)
    assert all(colour < len(SHADES) and sign in MARKERS for colour, sign in looks.values())


@pytest.mark.parametrize(("ground", "which"), [("#ffffff", 0), ("#191d21", 1)], ids=["light", "dark"])
def test_colours_are_legible(ground: str, which: int) -> None:
    for shades in SHADES:
        assert contrast(shades[which], ground) >= 4.5, shades[which]


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours as WCAG 2 defines it."""
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance of an sRGB colour."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_step_times_that_could_not_be_measured_are_said_to_be_missing(tmp_path: Path) -> None:
    found = dataclasses.replace(results(1), timing={}, unmeasured={"the step times": "the machine was busy"})
    write_report(found, task(), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<dt>Step</dt><dd>Not measured.</dd>" in text
    assert "The step times could not be measured: the machine was busy" in text
