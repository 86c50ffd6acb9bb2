"""Files that are whole or absent: written aside, flushed to the disk, renamed."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ASIDE = ".writing-"


def flush(path: Path) -> None:
    """Force a file or folder entry to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """An empty folder to fill; it becomes `target` when the block ends well and vanishes when it does not."""
    aside = target.with_name(ASIDE + target.name)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        for path in [*aside.rglob("*"), aside]:
            flush(path)
        if target.exists():
            shutil.rmtree(target)
        aside.rename(target)
        flush(target.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def write_text(target: Path, text: str) -> None:
    """Replace a file in one step."""
    aside = target.with_name(ASIDE + target.name)
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(target)
        flush(target.parent)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_json(target: Path, data: Any) -> None:
    """Replace a JSON file in one step."""
    write_text(target, json.dumps(data, indent=2, allow_nan=False) + "\n")
