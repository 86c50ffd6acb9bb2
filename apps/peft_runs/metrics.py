"""`metrics.jsonl`: one line per step and per evaluation, cut back to the checkpoint when a run goes on from one."""

import json
import os
from pathlib import Path
from typing import Any


class Metrics:
    """Appends lines; `position` is the length in bytes that a checkpoint remembers."""

    def __init__(self, path: Path, position: int = 0):
        self.path = path
        self.file = path.open("ab")
        self.file.truncate(position)
        self.file.seek(position)

    def add(self, kind: str, **values: Any) -> None:
        """Write one line, `{"kind": ..., "step": ..., ...}`."""
        self.file.write(json.dumps({"kind": kind, **values}).encode() + b"\n")
        self.file.flush()

    def settle(self) -> int:
        """Force the lines to the disk and return their length in bytes."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.file.tell()

    def close(self) -> None:
        self.file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a run's metrics (a line being written by a living run is left out)."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
