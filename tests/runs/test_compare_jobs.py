"""The processes of a comparison when Ctrl-C comes at the worst moment: while one is being started."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from peft_runs import compare_jobs
from peft_runs.compare_jobs import interruption_waits, train_all
from peft_runs.compare_plan import Plan, PlannedRun
from peft_runs.compare_progress import CompareProgress
from peft_runs.families import VISION


def test_interruption_while_a_process_is_started_ends_that_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(*_: object) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        started.append(process)
        os.kill(os.getpid(), signal.SIGINT)
        return process

    monkeypatch.setattr(compare_jobs, "start", start)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores Ctrl-C
    run = PlannedRun("bitfit", 0, "digits_bitfit", (), "bitfit/seed-0")
    plan = Plan("vision", "digits", (), (run,), 1, 1)
    try:
        with pytest.raises(KeyboardInterrupt):
            train_all(plan, tmp_path, VISION, CompareProgress(Console(quiet=True), ["bitfit"], 1, None, "accuracy"))
    finally:
        signal.signal(signal.SIGINT, before)
    [process] = started
    assert process.poll() is not None


def test_ignored_interruption_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruption_waits():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
