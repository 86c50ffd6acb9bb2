"""Processes that outlive the one that started them: known by id and time of birth, ended with all they started."""

import contextlib
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil

SAME = 2.0  # seconds by which two readings of one birth may differ


def start(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, which neither Ctrl-C nor the end of this one reaches."""
    with log.open("ab") as file:
        return subprocess.Popen(
            list(words), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def born(pid: int) -> float | None:
    """When a living process began."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def alive(pid: int, when: float) -> bool:
    """Whether the process of this id and birth still runs; an id can be given anew."""
    found = born(pid)
    return found is not None and abs(found - when) < SAME


def kill_tree(pid: int) -> None:
    """End a process and all that it started, at once."""
    try:
        process = psutil.Process(pid)
        family = [*process.children(recursive=True), process]
    except psutil.Error:
        return
    for member in family:
        with contextlib.suppress(psutil.Error):
            member.send_signal(signal.SIGKILL)
    psutil.wait_procs(family, timeout=2)
