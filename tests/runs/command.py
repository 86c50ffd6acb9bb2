"""Starting the commands: in this process for tables of errors, as processes for what only a process can show."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from peft_runs.commands import main
from peft_runs.families import VISION

PROGRAM = Path(sys.executable).with_name("vision-peft")
DIFFUSION_PROGRAM = PROGRAM.with_name("diffusion-peft")
# Six steps of an untrained model on few digits: seconds, and everything that a long run does.
SMALL = (
    *("--recipe", "digits", "--model.pretrained", "false", "--data.train_size", "60", "--optim.batch_size", "20"),
    *("--run.epochs", "2", "--run.evaluate_epochs", "9"),
)


def process(*words: object, before: tuple[str, ...] = (), program: Path = PROGRAM) -> subprocess.CompletedProcess[str]:
    """Run the installed command to its end, one thread a process."""
    return subprocess.run(
        [*before, str(program), *map(str, words)], capture_output=True, text=True, env=one_thread(), timeout=300
    )


def killed_at(step: int, *words: object, program: Path = PROGRAM) -> None:
    """Start a command and kill it and its workers once its metrics hold `step` steps."""
    folder = Path(str(words[words.index("--out") + 1]))
    running = subprocess.Popen(
        [str(program), *map(str, words)], env=one_thread(), start_new_session=True, stdout=subprocess.DEVNULL
    )
    metrics = folder / "metrics.jsonl"
    while running.poll() is None:
        if metrics.exists() and sum(line["kind"] == "step" for line in whole(metrics)) >= step:
            break
        time.sleep(0.01)
    assert running.poll() is None, "the run ended before it could be killed"
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()


def whole(metrics: Path) -> list[dict[str, Any]]:
    """The lines of a file that is still written to."""
    text = metrics.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def one_thread() -> dict[str, str]:
    """The environment with one thread a process."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def here(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, output and error output of a command carried out in this process."""
    capsys.readouterr()
    code = main(VISION, [str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err.strip()


def result(folder: Path) -> dict[str, Any]:
    """The result of a finished run."""
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def lines(folder: Path) -> list[dict[str, Any]]:
    """A run's metrics without the times."""
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in text.splitlines()]
