"""The process of one run: it starts the command, waits for it, stops it when asked, and writes how it ended.

    python -m peft_compare.worker RUN [COMMAND...]        COMMAND: instead of the run's own

It lives in a session of its own and outlives the server; a new server finds it by process.json. SIGTERM cancels the
run: the command is interrupted and, if it has not ended soon, killed with all its processes. Checkpoints are whole or
absent, so that either way the last one stays.
"""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from peft_compare.looks import SECONDS
from peft_compare.processes import kill_tree
from peft_compare.runs import Run, Runs

PATIENCE = 1.0  # seconds an interrupted command has to end by itself
COMMAND = (sys.executable, "-P", "-m", "peft_compare.carry_out")


def main(run: Run, command: list[str]) -> None:
    """Carry the run out, once."""
    if not run.claim(os.getpid()):
        return
    cancelled = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: cancelled.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with run.log.open("ab") as log:
        child = subprocess.Popen(
            [*command, str(run.path)], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
    while child.poll() is None and not cancelled.wait(0.05):
        pass
    if child.poll() is None:
        stop(child)
        run.finish("cancelled", f"cancelled; {run.kept()}")
    elif child.returncode == 0:
        run.finish("done")
    else:
        run.finish("failed", reason(run, child.returncode))


def stop(child: "subprocess.Popen[bytes]") -> None:
    """Interrupt the command, then kill what is left of it."""
    child.send_signal(signal.SIGINT)
    try:
        child.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        kill_tree(child.pid)
        child.wait()


def reason(run: Run, code: int) -> str:
    """Why the command ended: what it said last, or the signal that ended it."""
    if code == -signal.SIGALRM:
        return f"it took longer than {SECONDS} seconds"
    if code < 0:
        name = signal.Signals(-code).name
        return f"the process was ended by {name}" + (
            " (the system does this when memory runs out)" if -code == signal.SIGKILL else ""
        )
    lines = [line.strip() for line in run.log.read_text(encoding="utf-8", errors="replace").splitlines()]
    said = [line for line in lines if line.startswith(f"{run.request.program}: ")] or [line for line in lines if line]
    last = said[-1].removeprefix(f"{run.request.program}: ") if said else f"exit code {code}"
    return last.replace(f"{run.path}/", "")


if __name__ == "__main__":
    place = Path(sys.argv[1])
    found = Runs(place.parent).find(place.name)
    if found is not None:
        main(found, sys.argv[2:] or list(COMMAND))
