"""The processes of a comparison: started, watched through the files they write, and always ended."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from peft_runs.compare_examine import read_examined
from peft_runs.compare_plan import Plan, PlannedRun
from peft_runs.families import Family
from peft_runs.metrics import read_metrics
from peft_runs.run_folder import RunFolder

LOOK_EVERY = 0.25  # seconds between two looks at the files
PATIENCE = 15.0  # seconds an interrupted process has to end by itself
LOG = "log.txt"
# glibc gives every large tensor's pages back to the system and takes them anew, step after step.
KEEP_PAGES = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_TOP_PAD_": str(2**26)}


@dataclass
class Child:
    """A process and what is known of it.

    Attributes:
        read: length of its metrics when they were last read.
        begun: when it was started, by the monotonic clock.
    """

    run: PlannedRun
    place: Path
    process: subprocess.Popen[bytes]
    begun: float = field(default_factory=time.monotonic)
    read: int = 0


def start(module: str, words: Sequence[str], log: Path, threads: int | None) -> subprocess.Popen[bytes]:
    """Start a module of this package as a process of its own; it ends when this one does.

    In a session of its own, so that Ctrl-C reaches this process alone, which then ends the others in order.
    """
    environment = {**KEEP_PAGES, **os.environ, "KINETO_LOG_LEVEL": "99", "PYTHONUNBUFFERED": "1"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    with log.open("ab") as file:
        # -P: a file in the user's folder must not stand in for a module of the same name.
        return subprocess.Popen(
            [sys.executable, "-P", "-m", f"peft_runs.{module}", *words],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


@contextmanager
def interruption_waits() -> Iterator[None]:
    """Ctrl-C within takes effect at the end of the block: a process is either not started, or known and ended."""
    before, here = signal.getsignal(signal.SIGINT), threading.current_thread()
    if before is not signal.default_int_handler or here is not threading.main_thread():  # not ours to change
        yield
        return
    arrived: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: arrived.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if arrived:
        raise KeyboardInterrupt


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Interrupt what still runs, wait for it, and kill what does not listen."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def finished(run: PlannedRun, out: Path) -> bool:
    """Whether a run is complete but for its step times."""
    return read_examined(run.folder(out)) is not None


def examined_figures(folder: RunFolder) -> Mapping[str, float] | None:
    """The figures of a finished run of a comparison."""
    examined = read_examined(folder)
    return None if examined is None else examined["figures"]


class Progress(Protocol):
    """Who hears how the runs go."""

    def began(self, run: PlannedRun) -> None: ...

    def kept_from_before(self, run: PlannedRun, figures: Mapping[str, float]) -> None: ...

    def trained(self, run: PlannedRun, step: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> None: ...

    def checking(self, run: PlannedRun) -> None: ...

    def ended(self, run: PlannedRun, figures: Mapping[str, float], failure: str | None) -> None: ...


def train_all(
    plan: Plan,
    out: Path,
    family: Family,
    progress: Progress,
    child_module: str = "compare_child",
    figures_of: Callable[[RunFolder], Mapping[str, float] | None] = examined_figures,
) -> dict[PlannedRun, str]:
    """Carry out all runs that are not finished, `plan.jobs` side by side; run → reason for those that failed.

    Args:
        child_module: what a run's process carries out.
        figures_of: the figures in a run's folder, none where it is not finished.
    """
    failures: dict[PlannedRun, str] = {}
    waiting = []
    for run in plan.runs:
        figures = figures_of(run.folder(out))
        if figures is not None:
            progress.kept_from_before(run, figures)
        else:
            waiting.append(run)
    running: list[Child] = []
    try:
        while waiting or running:
            while waiting and len(running) < plan.jobs:
                run = waiting.pop(0)
                place = run.folder(out).path
                place.mkdir(parents=True, exist_ok=True)
                words = [plan.family, str(place), *run.train_words()]
                with interruption_waits():
                    running.append(Child(run, place, start(child_module, words, place / LOG, plan.threads)))
                progress.began(run)
            time.sleep(LOOK_EVERY)
            for child in list(running):
                watch(child, progress)
                code = child.process.poll()
                if code is None:
                    continue
                running.remove(child)
                if code:
                    failures[child.run] = reason(child.place / LOG, code, family)
                progress.ended(child.run, figures_of(child.run.folder(out)) or {}, failures.get(child.run))
    finally:
        end([child.process for child in running])
    return failures


def watch(child: Child, progress: Progress) -> None:
    """Show what the run has written since the last look."""
    folder = RunFolder(child.place)
    if folder.result.exists():
        progress.checking(child.run)
        return
    if not folder.metrics.is_file() or folder.metrics.stat().st_size == child.read:
        return
    child.read = folder.metrics.stat().st_size
    lines = read_metrics(folder.metrics)
    steps = [line for line in lines if line["kind"] == "step"]
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    if steps:
        progress.trained(child.run, steps[-1], evaluations[-1] if evaluations else None)


def reason(log: Path, code: int, family: Family) -> str:
    """Why a process ended: the sentence it said last, or the signal that ended it."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"the process was ended by {name}" + (
            " (the system does this when memory runs out)" if -code == signal.SIGKILL else ""
        )
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = [line for line in lines if line.startswith(f"{family.program}: ")]
    if said:
        return said[-1].removeprefix(f"{family.program}: ")
    return lines[-1] if lines else f"the process ended with exit code {code} and said nothing"
