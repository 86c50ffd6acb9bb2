"""A real Chromium, and what each test wants to know of a page: errors, requests to other machines, findings of axe."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# No sandbox as root; no connections of the browser's own.
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
SHOTS = Path(__file__).resolve().parents[2] / "runs" / "screenshots"
PATIENCE = 60_000  # milliseconds, for a machine that does something else as well


@contextmanager
def chromium(*flags: str) -> Iterator[Browser]:
    """The system's browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *flags])
        try:
            yield browser
        finally:
            browser.close()


class Visitor:
    """One browser with cookies of its own, on one page.

    Attributes:
        errors: what the console said as an error, and exceptions of scripts.
        elsewhere: requests to other machines.
    """

    def __init__(self, browser: Browser, url: str, width: int = 1360, dark: bool = False):
        look: Any = "dark" if dark else "light"
        self.url = url
        self.context = browser.new_context(viewport={"width": width, "height": 1000}, color_scheme=look)
        self.context.set_default_timeout(PATIENCE)
        self.page: Page = self.context.new_page()
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda asked: self._asked(asked.url))

    def _asked(self, address: str) -> None:
        if not address.startswith((self.url, "data:", "blob:")):
            self.elsewhere.append(address)

    def open(self, path: str = "/") -> Page:
        """The page, once it is there."""
        self.page.goto(self.url + path)
        self.page.wait_for_selector("button.primary:visible")
        return self.page

    def shot(self, name: str) -> None:
        """Keep a picture of the whole page."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png", full_page=True)

    def findings(self) -> list[str]:
        """What axe-core finds serious or critical."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [
            f"{one['id']}: {node['target']} {node['failureSummary'][:200]}"
            for one in found
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"]
        ]


def missing() -> str | None:
    """Why there is no browser, if there is none."""
    if CHROMIUM is None:
        return "no Chromium: apt-get install chromium"
    if not os.access(CHROMIUM, os.X_OK):
        return f"{CHROMIUM} cannot be started"
    return None
