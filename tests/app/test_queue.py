"""Runs that wait, go on, end, are cancelled and found again; with a command that stands in for a comparison."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peft_compare.processes import alive, kill_tree
from peft_compare.queue import Queue
from peft_compare.refusals import RefusedError
from peft_compare.runs import Run, Runs
from peft_compare.settings import Limits

STUB = (sys.executable, "-S", str(Path(__file__).with_name("stub.py")))
Opener = Callable[..., Queue]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opener]:
    """Opens queues on one folder; whatever still runs is ended after the test."""
    queues: list[Queue] = []

    def open_queue(waiting: int = 5, jobs: int = 1) -> Queue:
        queue = Queue(Runs(tmp_path), Limits(waiting=waiting), jobs, STUB)
        queue.begin()
        queues.append(queue)
        return queue

    yield open_queue
    for queue in queues:
        queue.close()
    for run in Runs(tmp_path).all():
        if run.process is not None:
            kill_tree(run.process["pid"])


def add(queue: Queue, *words: str, owner: str = "me") -> Run:
    return queue.add("vision", "a run", "vision-peft", list(words), owner)


def until(holds: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def ready(run: Run) -> bool:
    return (run.out / "ready").exists()


def test_runs_go_one_after_the_other_and_end(opened: Opener) -> None:
    queue = opened()
    runs = [add(queue, "0.2") for _ in range(3)]
    until(lambda: runs[0].state == "running")
    assert [queue.position(run) for run in runs] == [None, 1, 2]
    until(lambda: runs[2].state == "done")
    ends = [run.end.at for run in runs if run.end is not None]
    assert ends == sorted(ends)
    assert [(run.out / "mine").read_text() for run in runs] == [run.id for run in runs]


def test_a_full_queue_says_so(opened: Opener) -> None:
    queue = opened(waiting=1)
    first = add(queue, "60")
    until(lambda: first.state == "running")
    add(queue, "0")
    with pytest.raises(RefusedError, match="1 runs are waiting, which is as many as may"):
        add(queue, "0")


@pytest.mark.parametrize(
    ("words", "said"), [(("0", "fail"), "there is no such thing"), (("0", "crash"), "ended by SIGSEGV")]
)
def test_a_crash_fails_one_run_alone(opened: Opener, words: tuple[str, ...], said: str) -> None:
    queue = opened()
    bad, good = add(queue, *words), add(queue, "0")
    until(lambda: good.state == "done")
    assert bad.state == "failed"
    assert bad.end is not None
    assert said in bad.end.said


@pytest.mark.parametrize("words", [("60",), ("60", "deaf")])
def test_cancel_ends_a_run_and_keeps_its_checkpoint(opened: Opener, words: tuple[str, ...]) -> None:
    queue = opened()
    run = add(queue, *words)
    until(lambda: ready(run))
    queue.cancel(run)
    assert run.state == "cancelled"
    assert run.end is not None
    assert run.end.said == "cancelled; the last checkpoints are kept (lora step 4)"
    assert (run.out / "lora/seed-0/checkpoint/step-00000004/state.json").exists()
    process = run.process
    assert process is not None
    until(lambda: not alive(process["pid"], process["born"]))


def test_cancel_takes_a_waiting_run_out(opened: Opener) -> None:
    queue = opened()
    first, second, third = add(queue, "60"), add(queue, "0"), add(queue, "0")
    until(lambda: first.state == "running")
    queue.cancel(second)
    assert second.state == "cancelled"
    assert queue.position(third) == 1
    assert not second.out.exists()


def test_a_new_server_goes_on_where_a_closed_one_left(opened: Opener) -> None:
    first = opened()
    going, waiting = add(first, "1.5"), add(first, "0")
    until(lambda: ready(going))
    first.close()
    second = opened()
    assert going.state == "running"
    assert second.position(waiting) == 1
    until(lambda: waiting.state == "done")
    assert going.state == "done"


def test_a_killed_worker_is_found_broken_and_its_command_ends(opened: Opener) -> None:
    first = opened()
    run = add(first, "60")
    until(lambda: ready(run))
    first.close()
    process = run.process
    assert process is not None
    kill_tree(process["pid"])
    assert run.state == "broken"
    second = opened()
    assert run.end is not None
    assert "what it had saved is kept" in run.end.said
    assert second.waiting() == []


SERVER = """
import sys, time
from pathlib import Path
from peft_compare.queue import Queue
from peft_compare.runs import Runs
from peft_compare.settings import Limits
queue = Queue(Runs(Path(sys.argv[1])), Limits(), 1, sys.argv[2:])
queue.begin()
queue.add("vision", "a run", "vision-peft", ["3"], "me")
time.sleep(60)
"""


def test_a_run_outlives_a_killed_server(tmp_path: Path, opened: Opener) -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(tmp_path), *STUB], start_new_session=True)
    try:
        until(lambda: any(ready(run) for run in Runs(tmp_path).all()))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    [run] = Runs(tmp_path).all()
    assert run.state == "running"
    opened()
    until(lambda: run.state == "done")


def test_two_servers_do_not_share_a_folder(opened: Opener) -> None:
    opened()
    with pytest.raises(RefusedError, match="another peft-compare works in"):
        opened()


def test_one_run_is_claimed_once(tmp_path: Path) -> None:
    run = Runs(tmp_path).create("vision", "a run", "vision-peft", [], "me")
    assert run.claim(os.getpid())
    assert not run.claim(os.getpid())
