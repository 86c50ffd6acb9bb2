"""What a person sees while a run works: a live line with the time left, or plain lines where there is no terminal."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 30.0


class LiveDisplay:
    """A display within a ``with`` block, if there is a terminal to show it."""

    live: Progress | None = None

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.live.stop()


class RunProgress(LiveDisplay):
    """Progress of one run; other processes than the first show nothing."""

    def __init__(self, shown: bool = True):
        self.console = Console(quiet=not shown, soft_wrap=True, highlight=False)
        self.bar = None
        self.what = ""
        self.first = (0.0, 0)
        self.said = time.monotonic()
        if self.console.is_terminal:
            self.live = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
            )

    def say(self, line: str) -> None:
        """One line that stays."""
        self.console.print(line, markup=False)

    def show(self, what: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps of `what`; without a terminal at most a line every half minute."""
        if self.live:
            if self.bar is None or self.live.tasks[self.bar].description != what:
                if self.bar is not None:
                    self.live.remove_task(self.bar)
                self.bar = self.live.add_task(what, total=total, completed=done, note=note)
            self.live.update(self.bar, completed=done, note=note)
            return
        now = time.monotonic()
        if what != self.what:
            self.what, self.first = what, (now, done)
        if now - self.said >= SECONDS_BETWEEN_LINES and done > self.first[1]:
            self.said = now
            left = (now - self.first[0]) / (done - self.first[1]) * (total - done)
            self.say(f"{what} {done}/{total} {note} {left:.0f} s left")
