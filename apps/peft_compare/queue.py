"""The queue: runs wait on the disk, a few go on at a time; a later server goes on where one was killed."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from peft_compare import uploads
from peft_compare.looks import LOOKS
from peft_compare.processes import kill_tree, start
from peft_compare.refusals import RefusedError
from peft_compare.runs import ENDED, Run, Runs
from peft_compare.settings import Limits

LOOK_EVERY = 0.25  # seconds between two looks at the disk
SWEEP_EVERY = 60.0
SHORT_JOBS = 1  # looks at a time
PATIENCE = 1.8  # seconds a worker has to end a run that is cancelled


def is_short(run: Run) -> bool:
    """Whether a run only looks at something, for which nobody should wait behind a training."""
    return run.request.words[:1] in LOOKS


class Queue:
    """Starts waiting runs, the oldest first, `jobs` at a time; one queue a folder.

    Args:
        command: what a worker carries out instead of the run's own command.
    """

    def __init__(self, runs: Runs, limits: Limits, jobs: int = 1, command: Sequence[str] = ()):
        self.runs, self.limits, self.jobs, self.command = runs, limits, jobs, tuple(command)
        self.lock = FileLock(runs.folder / ".server.lock")
        self.changing = threading.RLock()
        self.open: dict[str, Run] = {}  # those not ended, the oldest first
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True)

    def begin(self) -> None:
        """Take the folder over, mark what was broken meanwhile, and start working.

        Raises:
            RefusedError: another server works there.
        """
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise RefusedError(
                f"another peft-compare works in {self.runs.folder}: choose another folder (--runs)"
            ) from None
        for run in self.runs.all():
            if run.state not in ENDED or run.end is None:
                self.open[run.id] = run
        self.look()
        self.thread.start()

    def close(self) -> None:
        """Stop looking; what runs goes on."""
        self.stopping.set()
        if self.thread.is_alive():
            self.thread.join()
        self.lock.release()

    def add(self, page: str, name: str, program: str, words: list[str], owner: str, given: Sequence[Path] = ()) -> Run:
        """Put a run at the end of the queue, with the files it was given.

        Raises:
            RefusedError: the queue is full.
        """
        with self.changing:
            waiting = len(self.waiting())
            if waiting >= self.limits.waiting:
                raise RefusedError(f"{waiting} runs are waiting, which is as many as may: try again when one has begun")
            run = self.runs.create(page, name, program, words, owner, given)
            self.open[run.id] = run
        return run

    def waiting(self) -> list[Run]:
        """Runs that have not begun, the first one next."""
        with self.changing:
            return [run for run in self.open.values() if run.id not in self.workers and run.state == "queued"]

    def training(self) -> bool:
        """Whether a comparison goes on."""
        with self.changing:
            return any(run.state == "running" and not is_short(run) for run in self.open.values())

    def position(self, run: Run) -> int | None:
        """How many runs of its kind have to begin before this one has, itself included."""
        ids = [other.id for other in self.waiting() if is_short(other) == is_short(run)]
        return ids.index(run.id) + 1 if run.id in ids else None

    def cancel(self, run: Run) -> None:
        """Take it out of the queue, or end its process; the last checkpoint stays."""
        with self.changing:
            if run.state == "queued" and run.id not in self.workers:
                run.finish("cancelled", "cancelled before it had begun")
                return
        deadline = time.monotonic() + PATIENCE
        while (process := run.process) is None and time.monotonic() < deadline and run.end is None:
            time.sleep(0.02)  # its worker is about to write it
        if process is None or run.state != "running":
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(process["pid"], signal.SIGTERM)
        while run.state == "running" and time.monotonic() < deadline:
            time.sleep(0.02)
        if run.state == "running":
            kill_tree(process["pid"])
        run.finish("cancelled", f"cancelled; {run.kept()}")

    def delete(self, run: Run) -> None:
        """Put a run away, which ends it if it goes on; `Runs.restore` takes that back."""
        if run.state not in ENDED:
            self.cancel(run)
        self.runs.delete(run)

    def look(self) -> None:
        """Write down what has ended without a word, and start what may begin."""
        with self.changing:
            for run in list(self.open.values()):
                worker = self.workers.get(run.id)
                ended = worker is not None and worker.poll() is not None
                state = run.state
                if state == "broken":
                    run.finish("broken", "its process is gone without a word; what it had saved is kept")
                elif state == "queued" and ended:
                    run.finish("failed", "its process could not be started; see the log")
                    state = "failed"
                if state in ENDED:
                    del self.open[run.id]
                    self.workers.pop(run.id, None)
            for run in self._next():
                words = [sys.executable, "-P", "-m", "peft_compare.worker", str(run.path), *self.command]
                self.workers[run.id] = start(words, run.log)

    def _next(self) -> list[Run]:
        """Those that may begin: comparisons, and beside them one short look at what a visitor gave."""
        waiting, found = self.waiting(), []
        for short, most in ((False, self.jobs), (True, SHORT_JOBS)):
            own = [run for run in waiting if is_short(run) == short]
            going = sum(is_short(run) == short for run in self.open.values()) - len(own)
            found += own[: max(0, most - going)]
        return found

    def _work(self) -> None:
        swept = time.monotonic()
        while not self.stopping.wait(LOOK_EVERY):
            with contextlib.suppress(OSError):  # a full disk; the next look may succeed
                self.look()
            if time.monotonic() - swept > SWEEP_EVERY:
                self.runs.sweep(self.limits.runs_bytes)
                uploads.sweep(self.runs.folder, {word for run in self.runs.all() for word in run.request.words})
                swept = time.monotonic()
