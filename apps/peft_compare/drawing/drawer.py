"""The server's side of the process that draws: one for all, started when it is first asked, and again when it broke."""

import base64
import io
import itertools
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from peft_compare.drawing.requests import Request, to_json
from peft_compare.refusals import RefusedError
from peft_runs.errors import RunError, UsageError

STARTING = 90.0  # seconds that a new process has on top: it loads the libraries
Told = Callable[[str, int, int], None]


class Drawer:
    """Asks the process that draws; one request at a time, the others wait.

    Args:
        seconds: that a request may take; the process is then ended, and started anew for the next one.
        most_waiting: requests that wait at most, beside the one that is worked on.
        idle: seconds after which a process that nobody asks gives its memory back.
        threads: of the process; None leaves it to torch.
        log: what the process says; None is nowhere.
        check: raises RefusedError for a pipeline that may not be opened.
    """

    def __init__(
        self,
        seconds: float = 120.0,
        most_waiting: int = 6,
        idle: float = 600.0,
        threads: int | None = None,
        log: Path | None = None,
        check: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.check = check
        self.seconds, self.idle, self.threads, self.log = seconds, idle, threads, log
        self.process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._turn = threading.Lock()
        self.most_waiting = most_waiting
        self._counting = threading.Lock()
        self.inside = 0  # requests that are worked on or wait
        self._numbers = itertools.count()
        self._closed = False

    def ask(self, request: Request, told: Told | None = None) -> dict[str, Any]:
        """The answer to a request, as `answers` describes it.

        Raises:
            UsageError: what is asked for cannot be had, or too many are waiting.
            RunError: the process broke, or took too long; the next request finds a new one.
        """
        try:
            self.check(request.pipeline)
        except RefusedError as refusal:
            raise UsageError(str(refusal)) from None
        with self._counting:
            if self.inside > self.most_waiting:
                raise UsageError("many pictures are being drawn right now: try again in a few seconds")
            self.inside += 1
        try:
            with self._turn:
                return self._asked(to_json(request), told)
        finally:
            with self._counting:
                self.inside -= 1

    def _asked(self, data: dict[str, Any], told: Told | None) -> dict[str, Any]:
        deadline = time.monotonic() + self.seconds
        process = self.process
        if process is None or process.poll() is not None:
            process = self._start()
            deadline += STARTING
        number = next(self._numbers)
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps({"id": number, **data}) + "\n")
            process.stdin.flush()
        except OSError:
            raise self._broken() from None
        while True:
            try:
                line = self._answers.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                self.end()
                raise RunError(
                    f"this takes longer than {self.seconds:.0f} s and was stopped: ask for fewer pictures or steps"
                ) from None
            if line is None:
                if process.returncode == 0:  # it gave up waiting just when it was asked
                    return self._asked(data, told)
                raise self._broken()
            said = json.loads(line)
            if said["id"] != number:
                continue
            if "progress" in said and told is not None:
                told(*said["progress"])
            elif "failure" in said:
                raise UsageError(said["failure"])
            elif "result" in said:
                return said["result"]

    def _start(self) -> subprocess.Popen[str]:
        if self._closed:
            raise RunError("the server is shutting down")
        environment = {**os.environ, "KINETO_LOG_LEVEL": "99", "PYTHONUNBUFFERED": "1"}
        if self.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        with open(self.log or os.devnull, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "peft_compare.drawing.worker", str(self.idle)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env=environment,
                start_new_session=True,
            )
        self._answers = queue.Queue()
        threading.Thread(target=_pass_on, args=(self.process, self._answers), daemon=True).start()
        return self.process

    def _broken(self) -> RunError:
        """What is told when the process ended by itself in the middle."""
        process = self.process
        self.end()
        code = process.returncode if process is not None else None
        why = "the machine ran out of memory, or it was ended" if code == -9 else f"exit code {code}"
        return RunError(f"the process that draws broke down ({why}); nothing else is affected: try again")

    def end(self) -> None:
        """End the process, whatever it does."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()

    def close(self) -> None:
        """End the process for good."""
        self._closed = True
        self.end()


def _pass_on(process: "subprocess.Popen[str]", answers: "queue.Queue[str | None]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        answers.put(line)
    process.wait()
    answers.put(None)


def picture(text: str) -> Image.Image:
    """A picture of an answer."""
    return Image.open(io.BytesIO(base64.b64decode(text)))
