"""The Adapters and the Points page as a visitor uses them, in a real browser, with the app's own processes."""

from __future__ import annotations

import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import trimesh
from peft import PeftModel
from playwright.sync_api import Browser, Page, expect

from peft_compare.frame import EXAMPLES
from tests.app.browser import PATIENCE, Visitor, chromium, missing
from tests.app.clouds import comparison
from tests.app.conftest import STAND_IN, Served, serving
from tests.kernels.saved_adapters import CONFIG, WEIGHTS, pictures, saved
from tests.runs.saved import MODEL

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
expect.set_options(timeout=PATIENCE)
SLOW = 4 * PATIENCE  # for what a process has to do that first loads all libraries
SOFTWARE = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")  # WebGL without a GPU


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium(*SOFTWARE) as browser:
        yield browser


@pytest.fixture
def visitor(browser: Browser, real: Served) -> Iterator[Visitor]:
    """A visitor who must not have seen an error, nor have been sent elsewhere."""
    visitor = Visitor(browser, real.url)
    yield visitor
    visitor.context.close()
    assert visitor.errors == []
    assert visitor.elsewhere == []


def turn_to(visitor: Visitor, tab: str) -> Page:
    page = visitor.open()
    page.get_by_role("tab", name=tab).click()
    return page


def look(page: Page, files: int = 1) -> None:
    """Press the button, once so many files have arrived."""
    expect(page.locator("#adapter-files table a")).to_have_count(files)
    page.locator("#look-at-adapter").click()


def test_an_adapter_is_looked_at_and_goes_out_again(visitor: Visitor, tmp_path: Path) -> None:
    base = timm.create_model(MODEL, pretrained=True)
    expected = saved(tmp_path / "mine", "sliced_lora", model=base)
    page = turn_to(visitor, "Adapters")
    page.locator("#adapter-files input[type=file]").set_input_files([tmp_path / "mine" / n for n in (CONFIG, WEIGHTS)])
    look(page, 2)
    expect(page.locator(".facts")).to_contain_text("sliced_lora", timeout=SLOW)
    expect(page.locator(".adapter-card")).to_contain_text("22 of 22 keys match (100%)")
    link = page.get_by_role("link", name="PEFT folder")
    expect(page.get_by_role("link", name="Merged model")).to_be_visible(timeout=SLOW)
    expect(page.get_by_role("button", name="kohya file")).to_be_disabled()
    expect(page.locator(".adapter-card figure")).to_have_count(3)
    assert visitor.findings() == []
    visitor.shot("adapters")
    page.reload()
    expect(link).to_be_visible()
    with page.expect_download() as waiting:
        link.click()
    with zipfile.ZipFile(waiting.value.path()) as archive:
        archive.extractall(tmp_path / "taken")
    again = PeftModel.from_pretrained(timm.create_model(MODEL, pretrained=True), tmp_path / "taken").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(pictures()), expected, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_looked_at_is_one_sentence(visitor: Visitor, tmp_path: Path) -> None:
    page = turn_to(visitor, "Adapters")
    expect(page.locator("#adapter-card")).to_contain_text(re.compile("Nothing yet|method"))
    page.locator("#look-at-adapter").click()
    expect(page.locator("#not-looked-at")).to_contain_text("no adapter is chosen")
    field = page.locator("#adapter-files input[type=file]")
    (tmp_path / "model.bin").write_bytes(b"\x80\x02}q\x00.")
    field.set_input_files(tmp_path / "model.bin")
    look(page)
    expect(page.locator("#not-looked-at")).to_contain_text("is a pickle, which can run code while it is read")
    page.get_by_label("Clear").first.click()
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 100)
    field.set_input_files(tmp_path / "cut.safetensors")
    look(page)
    expect(page.locator("#adapter-watched")).to_contain_text("is not a whole safetensors file", timeout=SLOW)
    expect(page.locator("#adapter-watched")).to_contain_text("Nothing was loaded. Give another file.")
    expect(page.locator("#adapter-watched details")).to_have_count(0)


def finished(served: Served) -> str:
    """A finished comparison of clouds; its id."""
    run = served.runs.create("points", "clouds", "vision-peft", ["compare", "--recipe", "scans"], "")  # type: ignore[attr-defined]
    from peft_compare.viewing import view_test_clouds

    run.out.mkdir()
    run.finish("done")
    comparison(run.out)
    view_test_clouds(run.out)
    return run.id


def test_a_cloud_is_turned_and_taken_apart(visitor: Visitor, real: Served, tmp_path: Path) -> None:
    page = visitor.open(f"/?run={finished(real)}")
    expect(page.locator("#cloud-plot canvas").first).to_be_visible()
    expect(page.locator("#predictions .guess h3")).to_have_count(2)
    expect(page.locator("#spectra")).to_contain_text("The first 25 % of the components hold")
    page.get_by_label("Cloud", exact=True).click()
    page.get_by_role("option", name="bottle (3)").click()
    expect(page.locator("#predictions")).to_contain_text("It is labelled bottle.")
    page.get_by_label(re.compile("^number input for Components kept")).fill("128")
    page.keyboard.press("Tab")
    expect(page.locator("#spectra")).to_contain_text("The first 50 % of the components hold")
    (tmp_path / "box.off").write_text(str(trimesh.creation.box().export(file_type="off")), encoding="utf-8")
    page.locator("#own-cloud input[type=file]").set_input_files(tmp_path / "box.off")
    expect(page.get_by_label("Cloud", exact=True)).to_have_value("Your cloud", timeout=SLOW)
    expect(page.locator("#predictions .guess h3")).to_have_count(2)
    expect(page.locator("#predictions")).not_to_contain_text("It is labelled")
    assert visitor.findings() == []
    visitor.shot("points")


def test_choose_watch_and_look_at_clouds(browser: Browser, tmp_path: Path) -> None:
    command = (sys.executable, "-S", str(STAND_IN), str(EXAMPLES / "scans"))
    with serving(tmp_path, command) as served:
        visitor = Visitor(browser, served.url)
        page = turn_to(visitor, "Points")
        expect(page.locator("#points-watched")).to_contain_text("A finished comparison to look at")
        page.get_by_role("checkbox", name="linear_probe").locator("visible=true").uncheck()
        page.get_by_role("spinbutton", name="Epochs").locator("visible=true").fill("3")
        page.locator("#start-points").click()
        page.wait_for_url(re.compile(r"run=[0-9a-f]{32}"))
        run: Any = served.runs.find(page.url.rpartition("run=")[2])  # type: ignore[attr-defined]
        words = " ".join(run.request.words)
        assert "--recipe scans --methods lora,pointgst" in words
        assert "--run.epochs 3" in words
        expect(page.locator("#points-watched .lane")).to_have_count(2)
        expect(page.locator("#points-compared")).to_contain_text("come when the training is done")
        (run.path / "go").touch()
        expect(page.locator("#points-compared table.results tbody tr")).to_have_count(3)  # the stand-in's own result
        expect(page.locator("#predictions .guess h3")).to_have_count(3)
        page.locator("#points-compared [data-pin=pointgst]").click()
        expect(page.locator("#points-closely h3")).to_contain_text(["pointgst: what it takes for what"])
        visitor.context.close()
        assert (visitor.errors, visitor.elsewhere) == ([], [])


@pytest.mark.parametrize("tab", ["Adapters", "Points"])
def test_the_pages_fit_a_phone(browser: Browser, real: Served, tab: str) -> None:
    visitor = Visitor(browser, real.url, width=390, dark=True)
    page = turn_to(visitor, tab)
    expect(page.locator("#look-at-adapter" if tab == "Adapters" else "#start-points")).to_be_visible()
    if tab == "Points":
        expect(page.locator("#cloud-plot canvas").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert visitor.findings() == []
    visitor.shot(f"{tab.lower()}_390_dark")
    assert (visitor.errors, visitor.elsewhere) == ([], [])
    visitor.context.close()
