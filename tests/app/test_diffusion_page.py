"""The Diffusion page as a visitor uses it, in a real browser: start and watch, draw, mix, steer, find layers."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import Browser, Page, expect

from peft_compare.runs import Run
from tests.app.browser import PATIENCE, Visitor, chromium, missing
from tests.app.conftest import Served
from tests.app.drawing_adapters import finished, make

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
expect.set_options(timeout=PATIENCE)
DRAWING = 2 * PATIENCE  # the process that draws loads its libraries first


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def done(real: Served, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished comparison of three adapters, one of which pictures steer."""
    adapters = make(tmp_path_factory.mktemp("adapters"))
    return finished(real.runs, adapters, ("lora", "bitfit", "scedit"))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def visitor(browser: Browser, real: Served) -> Iterator[Visitor]:
    """A visitor who must not have seen an error, nor have been sent elsewhere."""
    visitor = Visitor(browser, real.url)
    yield visitor
    visitor.context.close()
    assert visitor.errors == []
    assert visitor.elsewhere == []


@pytest.fixture(scope="module")
def page(visitor: Visitor, done: Run) -> Page:
    """The finished comparison, opened by its link."""
    page = visitor.open(f"/?tab=diffusion&run={done.id}")
    expect(page.locator("#diffusion-compared table.results tbody tr")).to_have_count(3)
    page.get_by_label("Prompts").fill("red heart")
    page.locator("#draw-steps-number input").fill("2")
    return page


def pictures(page: Page, grid: str, row: str) -> list[str]:
    """The addresses of a row's pictures."""
    found = page.locator(f'#{grid} tr[data-row="{row}"] td img')
    return [str(one.get_attribute("src")) for one in found.all()]


def drawn(page: Page, grid: str, rows: int) -> None:
    """Wait until a grid is complete."""
    expect(page.locator(f"#{grid} tr[data-row]")).to_have_count(rows, timeout=DRAWING)
    expect(page.locator(f"#{grid} .skeleton")).to_have_count(0, timeout=DRAWING)


def test_side_by_side_with_strengths_and_a_wipe(page: Page, visitor: Visitor) -> None:
    page.locator("#draw").click()
    drawn(page, "grid-side", 4)
    base, lora = (pictures(page, "grid-side", row) for row in ("base", "lora"))
    assert len(base) == len(lora) == 2
    assert base != lora
    expect(page.locator('#grid-side tr[data-row="scedit"] .said')).to_contain_text("steered by edges")
    page.get_by_label("Strength of lora").fill("0")
    expect(page.locator('#grid-side tr[data-row="lora"] td img').first).to_have_attribute("src", base[0])
    assert pictures(page, "grid-side", "base") == base
    page.locator('#grid-side tr[data-row="bitfit"] td button').nth(1).click()
    expect(page.locator("#grid-side .wipe figcaption")).to_contain_text("base on the left, bitfit: “red heart”, seed 1")
    expect(page.locator("#grid-side .wipe .before")).to_have_attribute("src", base[1])
    assert visitor.findings() == []
    page.get_by_role("button", name="Close").click()
    expect(page.locator("#grid-side .wipe")).to_be_hidden()


def test_lines_that_are_drawn_steer(page: Page) -> None:
    canvas = page.locator('canvas[data-hint="edges"]')
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 30, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + 150, box["y"] + 150, steps=4)
    page.mouse.up()
    page.locator("#draw").click()
    expect(page.locator('#grid-side tr[data-row="scedit"] .hint')).to_have_count(1, timeout=DRAWING)
    drawn(page, "grid-side", 4)
    assert len(pictures(page, "grid-side", "scedit")) == 2


def test_adapters_are_mixed(page: Page) -> None:
    page.get_by_role("tab", name="Mix").click()
    page.get_by_label("Weight of lora").fill("0.5")
    page.get_by_label("Weight of bitfit").fill("1")
    page.get_by_role("button", name="Draw the mix").click()
    drawn(page, "grid-mix", 2)
    expect(page.locator("#grid-mix tr[data-row]").nth(1)).to_have_attribute("data-row", "0.5 lora + 1 bitfit")
    mixed = pictures(page, "grid-mix", "0.5 lora + 1 bitfit")
    assert len(mixed) == 2
    assert mixed != pictures(page, "grid-mix", "base")


def test_one_step_is_held_against_many(page: Page) -> None:
    page.get_by_role("tab", name="One step").click()
    page.locator("#draw-steps").click()
    drawn(page, "grid-steps", 5)
    rows = [str(row.get_attribute("data-row")) for row in page.locator("#grid-steps tr[data-row]").all()]
    assert rows[:3] == ["base, 50 steps", "base, 1 step", "lora, 1 step"]
    many, one = (page.locator(f'#grid-steps tr[data-row="{row}"] .said').text_content() or "" for row in rows[:2])
    assert "a picture" in many
    assert pictures(page, "grid-steps", rows[0]) != pictures(page, "grid-steps", rows[1])
    assert milliseconds(one) < milliseconds(many)


def milliseconds(said: str) -> float:
    """Of `1.2 s a picture` or `80 ms a picture`."""
    value, unit, *_ = said.split()
    return float(value.replace(",", "")) * (1000 if unit == "s" else 1)


def test_the_layer_that_writes_is_found_and_patched(page: Page, visitor: Visitor) -> None:
    page.get_by_role("button", name="Layers that draw the text").click()
    page.locator("#find-layers").click()
    expect(page.locator("#patched img")).to_have_count(3, timeout=DRAWING)
    pressed = page.locator('#layer-strip [aria-pressed="true"]')
    expect(pressed).not_to_have_count(0)
    page.locator('#layer-strip [data-layer="3"]').click()
    expect(page.locator("#layer-strip .share")).to_contain_text(re.compile(r"^Layer 3: [\d,]+ parameters"))
    page.locator('#layer-strip [data-layer="7"]').click(modifiers=["Shift"])
    expect(page.locator("#layer-strip .share")).to_contain_text("Layers 3, 7:")
    before = page.locator("#patched img").nth(1).get_attribute("src")
    expect(page.locator("#patched img").nth(1)).not_to_have_attribute("src", str(before))
    page.locator("#make-lora").click()
    expect(page.locator("#made-lora")).to_contain_text("diffusion-peft train --recipe spelling")
    visitor.shot("diffusion")


def test_programs_draw_the_same(real: Served, done: Run) -> None:
    client = Client(real.url, verbose=False)
    rows = client.predict(done.id, "red heart", "0", 2, api_name="/draw")["rows"]
    assert [row["name"] for row in rows] == ["base", "lora", "bitfit", "scedit"]
    assert "steered by edges" in rows[3]["failure"]
    mixed = client.predict(done.id, "red heart", "0", 2, 4.0, "lora=0.5,bitfit=1", api_name="/draw")["rows"]
    assert mixed[0]["pictures"] == rows[0]["pictures"]
    assert mixed[1]["pictures"] not in [row.get("pictures") for row in rows]
    with pytest.raises(AppError, match=r"unknown adapter 'lorra' \(did you mean 'lora'"):
        client.predict(done.id, "red heart", "0", 2, 4.0, "lorra=1", api_name="/draw")
    client.close()


def test_captions_of_the_drawn_set_are_written_anew(browser: Browser, stand_in: Served) -> None:
    visitor = Visitor(browser, stand_in.url)
    page = visitor.open()
    page.get_by_role("tab", name="Diffusion").click()
    page.locator("#captions-anew").click()
    captions = page.get_by_label("Captions")
    expect(captions).to_have_value(re.compile(r"^neon style, heart in yellow\nneon style, apple in green\n"))
    expect(page.get_by_label("My pictures").locator("visible=true")).to_be_checked()
    captions.fill(captions.input_value().replace("heart in yellow", "a yellow heart that glows"))
    captions.blur()
    page.locator("#diffusion-start").click()
    page.wait_for_url(re.compile(r"run=[0-9a-f]{32}"))
    run = stand_in.runs.find(page.url.rpartition("run=")[2])  # type: ignore[attr-defined]
    root = Path(run.request.words[run.request.words.index("--data.root") + 1])
    stand_in.queue.cancel(run)  # type: ignore[attr-defined]
    rows = [json.loads(line) for line in (root / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows[0] == {"file_name": "00000.png", "text": "neon style, a yellow heart that glows"}
    assert [row["file_name"] for row in rows] == sorted(path.name for path in root.glob("*.png"))
    visitor.context.close()
    assert visitor.errors == []


def test_choose_watch_and_cancel(browser: Browser, stand_in: Served) -> None:
    visitor = Visitor(browser, stand_in.url, width=390)
    page = visitor.open()
    page.get_by_role("tab", name="Diffusion").click()
    page.locator("#diffusion-epochs input").fill("400")
    page.locator("#diffusion-start").click()
    page.wait_for_url(re.compile(r"run=[0-9a-f]{32}"))
    expect(page.locator("#diffusion-watched .lane")).to_have_count(4)
    page.reload()
    expect(page.locator("#diffusion-watched .lane")).to_have_count(4)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#diffusion-cancel").click()
    expect(page.locator("#diffusion-watched")).to_contain_text("Cancelled")
    visitor.shot("diffusion_mobile")
    visitor.context.close()
    assert visitor.errors == []
