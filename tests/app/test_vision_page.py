"""The Vision page as a visitor uses it, in a real browser."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.app.browser import PATIENCE, Visitor, chromium, missing
from tests.app.conftest import Served, until
from tests.app.test_uploads import classes, packed

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def visitor(browser: Browser, stand_in: Served) -> Iterator[Visitor]:
    """A visitor who must not have seen an error, nor have been sent elsewhere."""
    visitor = Visitor(browser, stand_in.url)
    yield visitor
    visitor.context.close()
    assert visitor.errors == []
    assert visitor.elsewhere == []


def choose(page: Page, methods: tuple[str, ...], epochs: int) -> None:
    """Fill the form in."""
    for box in page.locator("#methods input[type=checkbox]").all():
        box.set_checked(box.get_attribute("name") in methods)
    page.get_by_role("spinbutton", name="Epochs").fill(str(epochs))
    page.get_by_role("spinbutton", name="Epochs").blur()


def start(page: Page, methods: tuple[str, ...] = ("linear_probe", "lora"), epochs: int = 3) -> str:
    """Start a comparison; its id, as the address has it."""
    choose(page, methods, epochs)
    page.locator("#start").click()
    page.wait_for_url(re.compile(r"run=[0-9a-f]{32}"))
    found = re.search(r"run=([0-9a-f]{32})", page.url)
    assert found
    return found[1]


def let_go(served: Served, run: str) -> None:
    """Let the comparison go beyond the first epoch."""
    (served.runs.find(run).path / "go").touch()  # type: ignore[attr-defined]


def test_a_first_visitor_sees_a_finished_comparison(visitor: Visitor) -> None:
    page = visitor.open()
    expect(page.locator("#compared table.results tbody tr").first).to_be_visible()
    expect(page.locator("#watched")).to_contain_text("A finished comparison to look at")
    accuracy = page.get_by_role("button", name="accuracy", exact=True)
    accuracy.click()
    shown = page.locator("#compared table.results tbody tr td:nth-child(4)").all_text_contents()
    values = [float(text.split()[0]) for text in shown]
    assert values == sorted(values)
    assert len(values) > 2
    expect(page.locator("#estimate")).to_contain_text("nothing like it has run on this machine yet")
    expect(page.locator("#closely h3")).to_have_count(0)
    page.locator("[data-pin=linear_probe]").click()
    expect(page.locator("#closely h3")).to_have_text([re.compile("^linear_probe: what it takes for what")])
    page.locator("[data-pin=lora]").click()
    expect(page.locator("#closely h3")).to_have_text(
        [re.compile("^linear_probe: what"), re.compile("^lora: what"), "Where linear_probe and lora disagree"]
    )
    page.locator("[data-pin=ssf]").click()
    expect(page.locator("#closely h3").last).to_have_text("Where lora and ssf disagree")
    page.locator("[data-pin=lora]").click()
    expect(page.locator("#closely h3")).to_have_text([re.compile("^ssf: what it takes for what")])
    assert visitor.findings() == []
    visitor.shot("vision")


def test_choose_watch_compare(visitor: Visitor, stand_in: Served) -> None:
    page = visitor.open()
    run = start(page, epochs=12)
    expect(page.locator("#watched .lane")).to_have_count(2)
    expect(page.locator("#watched")).to_contain_text(re.compile(r"epoch 1/12 · [\d.]+\s% · \d+\ss left"))
    expect(page.locator("figure.figure svg").first).to_be_visible()
    visitor.shot("vision_watch")
    let_go(stand_in, run)
    expect(page.locator("#compared table.results")).to_be_visible()
    expect(page.locator(".runs .state-done")).to_have_count(1)
    page.get_by_text("The command that repeats this").click()
    expect(page.locator("#compared pre")).to_contain_text("--methods linear_probe,lora --seeds 1 --run.epochs 12")


def test_the_page_can_be_reloaded_and_closed_during_a_run(browser: Browser, visitor: Visitor, stand_in: Served) -> None:
    page = visitor.open()
    run = start(page, ("lora",), 12)
    expect(page.locator("#watched .lane")).to_have_count(1)
    page.reload()
    expect(page.locator("#watched .lane .said")).to_contain_text("epoch")
    page.close()
    let_go(stand_in, run)
    visitor.page = visitor.context.new_page()
    page = visitor.open()
    page.locator(f"[data-event=open][data-run='{run}']").click()
    page.wait_for_url(re.compile(f"run={run}"))
    expect(page.locator(".runs .state-done")).to_have_count(1)
    expect(page.locator("#compared table.results")).to_be_visible()


def test_two_visitors_are_strangers(browser: Browser, visitor: Visitor, stand_in: Served) -> None:
    other = Visitor(browser, stand_in.url)
    page, others = visitor.open(), other.open()
    run = start(page, ("lora",), 60)
    expect(page.locator(".runs li")).to_contain_text("vit_mini on digits")
    others.reload()
    expect(others.locator(".runs")).to_contain_text("Your comparisons will stand here")
    linked = other.open(f"/?run={run}")
    expect(linked.locator("#watched .lane")).to_have_count(1)
    linked.get_by_role("button", name="Cancel").click()
    expect(linked.get_by_text("only that one can cancel it")).to_be_visible()
    assert stand_in.runs.find(run).state == "running"  # type: ignore[attr-defined]
    page.get_by_role("button", name="Cancel").click()
    until(lambda: stand_in.runs.find(run).state == "cancelled", 4)  # type: ignore[attr-defined]
    expect(page.locator("#watched")).to_contain_text("the last checkpoints are kept (lora step 0)")
    other.context.close()


def test_a_run_is_deleted_and_taken_back(visitor: Visitor, stand_in: Served) -> None:
    page = visitor.open()
    run = start(page, ("lora",), 1)
    let_go(stand_in, run)
    expect(page.locator(".runs .state-done")).to_have_count(1)
    page.locator(f"[data-event=remove][data-run='{run}']").click()
    expect(page.locator(".undo")).to_contain_text("deleted")
    assert stand_in.runs.find(run) is None  # type: ignore[attr-defined]
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(f"[data-event=open][data-run='{run}']")).to_be_visible()


def test_a_form_that_can_not_be_done_says_why(visitor: Visitor) -> None:
    page = visitor.open()
    choose(page, (), 3)
    page.locator("#start").click()
    expect(page.locator("#not-started")).to_contain_text("no method is chosen: tick at least one")
    assert "run=" not in page.url


def test_equal_budget_shows_what_it_chose(visitor: Visitor) -> None:
    page = visitor.open()
    choose(page, ("lora", "bitfit"), 3)
    page.get_by_label("Equal for all").check()
    expect(page.get_by_label("Sizes chosen")).to_contain_text("lora: r 5, 38,400")
    expect(page.get_by_label("Sizes chosen")).to_contain_text("bitfit: 6,208 (one size only)")


def test_uploads_are_shown_or_refused(visitor: Visitor, tmp_path: Path) -> None:
    page = visitor.open()
    page.get_by_label("My pictures").check()
    field = page.locator("#upload input[type=file]")
    field.set_input_files(packed(tmp_path, {"a/x.png": b"no picture"}))
    expect(page.locator("#uploaded")).to_contain_text("'a/x.png' is no whole picture")
    page.locator("#start").click()
    expect(page.locator("#not-started")).to_contain_text("no pictures are chosen")
    page.get_by_label("Clear").first.click()
    field.set_input_files(packed(tmp_path, classes("cat", "dog")))
    expect(page.locator("#uploaded tbody tr")).to_have_count(2)
    expect(page.locator("#uploaded img")).to_have_count(10)
    for name, data in classes("früh", "spät", "nie").items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(data)
    page.get_by_label("A folder of class folders instead").set_input_files(tmp_path / "folder")
    expect(page.locator("#uploaded tbody tr")).to_have_count(3)
    expect(page.locator("#uploaded tbody th")).to_have_text(["früh", "nie", "spät"])


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_narrow_page(browser: Browser, stand_in: Served, dark: bool) -> None:
    visitor = Visitor(browser, stand_in.url, width=390, dark=dark)
    page = visitor.open()
    expect(page.locator("#compared table.results")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert visitor.findings() == []
    visitor.shot(f"vision_390_{'dark' if dark else 'light'}")
    assert (visitor.errors, visitor.elsewhere) == ([], [])
    visitor.context.close()


def test_by_keyboard_alone(visitor: Visitor) -> None:
    page = visitor.open()
    expect(page.locator("#compared table.results")).to_be_visible()
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
        if reached[-1] == "start":
            break
    assert reached[-1] == "start"
    assert reached[0] == "Light / dark"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_a_drawn_digit_is_seen_by_every_model(visitor: Visitor) -> None:
    page = visitor.open()
    canvas = page.locator(".sketch canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 30, steps=8)
    page.mouse.up()
    expect(page.locator(".guess h3").first).to_be_visible(timeout=3 * PATIENCE)
    rows = page.locator("#compared table.results tbody tr").count()
    expect(page.locator(".guess h3")).to_have_count(rows)
    expect(page.locator(".guess ol").first.locator("li")).to_have_count(5)
