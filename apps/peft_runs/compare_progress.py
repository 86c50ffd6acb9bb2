"""What a person sees while a comparison works: a live row per method, or plain lines where there is no terminal."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from peft_runs import compare_words as words
from peft_runs.compare_plan import PlannedRun
from peft_runs.progress import LiveDisplay

SECONDS_BETWEEN_LINES = 20.0


class CompareProgress(LiveDisplay):
    """Rows of all methods; several seeds of one method share its row.

    Args:
        methods: the rows, in order.
        seeds: how many runs a row stands for.
        steps: training steps of one run, where they are known.
        metric: name of the figure that is shown.
    """

    def __init__(self, console: Console, methods: Sequence[str], seeds: int, steps: int | None, metric: str):
        self.console, self.seeds, self.metric = console, seeds, metric
        self.steps = steps or 0
        self.total = len(methods) * seeds
        self.done: dict[PlannedRun, int] = {}
        self.ended_runs: set[PlannedRun] = set()
        self.kept: set[PlannedRun] = set()
        self.judged: dict[PlannedRun, int] = {}
        self.alone_said: set[str] = set()
        self.said_at = time.monotonic()
        self.timed_from: tuple[float, int] | None = None  # when the first step was seen, and how many were done then
        if console.is_terminal:
            self.live = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}"),
                console=console,
                speed_estimate_period=60,
            )
            total = None if steps is None else steps * seeds
            self.rows = {
                name: self.live.add_task(name, total=total, start=False, note="[dim]waiting[/dim]") for name in methods
            }
            self.all_row = self.live.add_task("together", total=total and total * len(methods), note="")
            self.alone_row = self.live.add_task("", total=None, start=False, note="", visible=False)

    def began(self, run: PlannedRun) -> None:
        """The run's process was started."""
        self._say(f"{self._name(run)}: started")
        if self.live:
            self.live.start_task(self.rows[run.method])
        self._show(run, "starting")

    def kept_from_before(self, run: PlannedRun, figures: Mapping[str, float]) -> None:
        """The run had been finished by an earlier command."""
        self.kept.add(run)
        self.ended(run, figures, None)

    def trained(self, run: PlannedRun, step: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> None:
        """The run has come to this step; its last evaluation, if there was one."""
        note = f"epoch {step['epoch'] + 1}, loss {step['loss']:.3f}"
        if evaluation:
            note += f", {self.metric} {self._value(evaluation)}"
            if self.judged.get(run) != evaluation["step"]:
                self.judged[run] = evaluation["step"]
                self._say(f"{self._name(run)}: {note}")
        self._show(run, note, step["step"])
        self._say_time_left()

    def checking(self, run: PlannedRun) -> None:
        """The run is trained; its process examines what it has saved."""
        self._show(run, "checking what was saved", self.steps)

    def ended(self, run: PlannedRun, figures: Mapping[str, float], failure: str | None) -> None:
        """The run's process has ended, well or not."""
        self.ended_runs.add(run)
        how = "done before" if run in self.kept else "done"
        text = f"failed: {failure}" if failure is not None else f"{how}, {self.metric} {self._value(figures)}"
        self._say(f"{self._name(run)}: {text}")
        colour = "green" if failure is None else "red"
        self._show(run, f"[{colour}]{escape(text)}[/{colour}]", self.steps)

    def timing(self, done: int, total: int, method: str) -> None:
        """Step times are being measured, one method after the other."""
        methods = "method" if total == 1 else "methods"
        said = f"step times of {total} {methods}, one after the other, alone"
        self._alone("step times", f"{method}, alone on the machine", said, done, total)

    def measuring(self, done: int, total: int, method: str) -> None:
        """What the models drew is being measured, one run after the other."""
        said = f"measuring the pictures of {total} {'run' if total == 1 else 'runs'}"
        self._alone("pictures", method, said, done, total)

    def _alone(self, what: str, note: str, said: str, done: int, total: int) -> None:
        if self.live:
            self.live.start_task(self.alone_row)
            self.live.update(self.alone_row, description=what, total=total, completed=done, note=note, visible=True)
        elif what not in self.alone_said:
            self.alone_said.add(what)
            self._say(said)

    def _value(self, figures: Mapping[str, Any]) -> str:
        return words.metric(figures[self.metric], None, words.is_share(self.metric))

    def _name(self, run: PlannedRun) -> str:
        return run.method if self.seeds == 1 else f"{run.method}, seed {run.seed}"

    def _say(self, line: str) -> None:
        if not self.live:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _show(self, run: PlannedRun, note: str, done: int | None = None) -> None:
        if done is not None:
            self.done[run] = done
        if self.live:
            reached = sum(steps for other, steps in self.done.items() if other.method == run.method)
            self.live.update(self.all_row, completed=sum(self.done.values()))
            seed = "" if self.seeds == 1 else f"seed {run.seed}: "
            self.live.update(self.rows[run.method], completed=reached, note=seed + note)

    def _say_time_left(self) -> None:
        """The time left at the pace of the steps since the first one: starting the processes tells nothing about it."""
        now = time.monotonic()
        done = sum(steps for run, steps in self.done.items() if run not in self.kept)
        self.timed_from = self.timed_from or (now, done)
        since, before = self.timed_from
        if self.live or not self.steps or done == before or now - self.said_at < SECONDS_BETWEEN_LINES:
            return
        self.said_at = now
        to_do = (self.total - len(self.kept)) * self.steps
        left = words.duration((now - since) * (to_do - done) / (done - before))
        self._say(f"{len(self.ended_runs)} of {self.total} runs done, about {left} of training left")
