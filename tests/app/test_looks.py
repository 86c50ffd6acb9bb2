"""A short look does not wait behind a training, and a training does not wait behind looks."""

from __future__ import annotations

import sys
from pathlib import Path

from peft_compare.processes import kill_tree
from peft_compare.queue import Queue
from peft_compare.runs import Runs
from peft_compare.settings import Limits
from tests.app.conftest import until

SLEEP = (sys.executable, "-S", "-c", "import time; time.sleep(60)")


def test_looks_go_on_beside_comparisons(tmp_path: Path) -> None:
    queue = Queue(Runs(tmp_path), Limits(), 1, SLEEP)
    queue.begin()
    try:
        runs = [
            queue.add("page", "run", "vision-peft", [word], "me") for word in ("compare", "compare", "inspect", "view")
        ]
        until(lambda: [run.state for run in runs] == ["running", "queued", "running", "queued"])
        assert [queue.position(run) for run in runs] == [None, 1, None, 1]
        queue.cancel(runs[2])
        until(lambda: runs[3].state == "running")
        assert runs[1].state == "queued"
    finally:
        queue.close()
        for run in runs:
            if run.process is not None:
                kill_tree(run.process["pid"])


def test_what_is_given_lies_beside_the_run_and_not_in_what_is_served(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"mine")
    run = Runs(tmp_path / "runs").create("adapters", "x", "vision-peft", ["inspect", "given"], "me", [file])
    assert (run.path / "given" / "x.safetensors").read_bytes() == b"mine"
    assert not run.out.exists()
