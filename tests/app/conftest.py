"""Servers for the app's tests: each on a free port of this machine, in a thread of this process."""

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

STAND_IN = Path(__file__).with_name("comparison.py")


@dataclass
class Served:
    """A running app: where it answers, and what it stands on."""

    url: str
    app: object
    runs: object
    queue: object


@contextmanager
def serving(folder: Path, command: tuple[str, ...] = (), **chosen: object) -> Iterator["Served"]:
    """The app over `folder`; `command` stands in for the comparisons' own."""
    import uvicorn

    from peft_compare.processes import kill_tree
    from peft_compare.queue import Queue
    from peft_compare.runs import Runs
    from peft_compare.server import App
    from peft_compare.settings import Settings

    settings = Settings(runs=folder, **chosen)  # type: ignore[arg-type]
    folder.mkdir(parents=True, exist_ok=True)
    app = App(settings, Queue(Runs(folder), settings.limits, settings.jobs, command))
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app.asgi, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    app.begin()
    thread.start()
    until(lambda: server.started)
    try:
        yield Served(f"http://127.0.0.1:{listening.getsockname()[1]}", app, app.runs, app.queue)
    finally:
        server.should_exit = True
        thread.join()
        app.close()
        for run in app.runs.all():
            if run.state == "running" and run.process is not None:
                kill_tree(run.process["pid"])


def until(holds: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for something to be true."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An app whose comparisons take as long as their epochs say, without any training."""
    from peft_compare.frame import EXAMPLES

    command = (sys.executable, "-S", str(STAND_IN), str(EXAMPLES / "digits"))
    with serving(tmp_path_factory.mktemp("stand_in"), command) as served:
        yield served


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An app as it is."""
    with serving(tmp_path_factory.mktemp("real")) as served:
        yield served
