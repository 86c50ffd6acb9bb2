"""Starting the commands: in this process for tables of errors, as processes for what only a process can show."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from peft_runs.commands import main
from peft_runs.families import VISION

PROGRAM = Path(sys.executable).with_name("vision-peft")
# Six steps of an untrained model on few digits: seconds, and everything that a long run does.
SMALL = (
    *("--recipe", "digits", "--model.pretrained", "false", "--data.train_size", "60", "--optim.batch_size", "20"),
    *("--run.epochs", "2", "--run.evaluate_epochs", "9"),
)


def process(*words: object, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the installed command to its end, one thread a process."""
    return subprocess.run(
        [*before, str(PROGRAM), *map(str, words)], capture_output=True, text=True, env=one_thread(), timeout=300
    )


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
