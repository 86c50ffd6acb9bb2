"""A file that another library writes, whole or absent: written aside, flushed to the disk, renamed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft_runs.durable import ASIDE, flush


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A path to write to, with the ending of ``target``; it replaces ``target`` when the block ends well."""
    aside = target.with_name(ASIDE + target.name)
    try:
        yield aside
        flush(aside)
        aside.replace(target)
        flush(target.parent)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
