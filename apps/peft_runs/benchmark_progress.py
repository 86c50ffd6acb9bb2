"""What a person sees while a benchmark works: all cells, and those under way; plain lines without a terminal."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from peft_runs import compare_words as words
from peft_runs.compare_plan import PlannedRun
from peft_runs.progress import LiveDisplay

SECONDS_BETWEEN_LINES = 30.0


class BenchmarkProgress(LiveDisplay):
    """Progress of `total` cells of `epochs` epochs each."""

    def __init__(self, console: Console, total: int, epochs: int, metric: str):
        self.console, self.total, self.epochs, self.metric = console, total, epochs, metric
        self.under_way: dict[PlannedRun, float] = {}
        self.ended_here = self.kept = 0
        self.began_at = self.said_at = time.monotonic()
        self.rows: dict[PlannedRun, TaskID] = {}
        if console.is_terminal:
            self.live = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}"),
                console=console,
                speed_estimate_period=600,
            )
            self.all_row = self.live.add_task("cells", total=total, note="")

    def began(self, run: PlannedRun) -> None:
        """The cell's process was started."""
        self.under_way[run] = 0.0
        if self.live:
            self.rows[run] = self.live.add_task(run.method, total=self.epochs, note="starting")

    def kept_from_before(self, run: PlannedRun, figures: Mapping[str, float]) -> None:
        """The cell had been finished by an earlier command."""
        self.kept += 1
        self._show()

    def trained(self, run: PlannedRun, step: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> None:
        """The cell has come to this step."""
        self.under_way[run] = step["epoch"] / self.epochs
        if self.live:
            self.live.update(self.rows[run], completed=step["epoch"], note=f"loss {step['loss']:.3f}")
        self._show()

    def checking(self, run: PlannedRun) -> None:
        """The cell is trained and judged; its process ends."""

    def ended(self, run: PlannedRun, figures: Mapping[str, float], failure: str | None) -> None:
        """The cell's process has ended, well or not."""
        self.under_way.pop(run, None)
        self.ended_here += 1
        said = failure and f"failed: {failure}"
        said = said or f"{self.metric} {words.metric(figures[self.metric], None, words.is_share(self.metric))}"
        self.console.print(f"{run.method}: {said}", highlight=False, markup=False, soft_wrap=True)
        if self.live:
            self.live.remove_task(self.rows.pop(run))
        self._show()

    def skipped(self, cells: int) -> None:
        """So many cells will not be carried out, since what they rest on failed."""
        self.total -= cells
        if self.live:
            self.live.update(self.all_row, total=self.total)

    def _show(self) -> None:
        here = self.ended_here + sum(self.under_way.values())
        if self.live:
            self.live.update(self.all_row, completed=self.kept + self.ended_here)
        now = time.monotonic()
        if self.live or now - self.said_at < SECONDS_BETWEEN_LINES or not here:
            return
        self.said_at = now
        left = words.duration((now - self.began_at) / here * (self.total - self.kept - here))
        done = self.kept + self.ended_here
        self.console.print(f"{done} of {self.total} cells done, about {left} left", highlight=False, soft_wrap=True)
