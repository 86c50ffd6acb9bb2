"""Runs on the disk: each a folder named by a 128-bit secret, and everything about it is read from there.

request.json   what to do: the command line that does it, who asked, when; written once
process.json   the process that does it: its id and when it was born; written once, by that process
end.json       how it ended; written once, by the process or by who found it dead
log.txt        what the process said
given/         files that a visitor gave; nobody gets them back
out/           the folder of the comparison, as the command leaves it

A run without process.json waits; one with process.json and without end.json runs, or its process is gone: broken.
"""

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from peft_compare.processes import alive, born
from peft_compare.refusals import RefusedError
from peft_runs.durable import write_json

State = Literal["queued", "running", "done", "failed", "cancelled", "broken"]
ENDED: tuple[State, ...] = ("done", "failed", "cancelled", "broken")
_ID = re.compile(r"[0-9a-f]{32}")
_DELETED = ".deleted"
GIVEN = "given"
KEPT_DELETED = 600.0  # seconds in which a deletion can be undone


@dataclass(frozen=True)
class Request:
    """What a visitor asked for.

    Attributes:
        page: the page that shows it.
        name: what the list calls it.
        program: `vision-peft` or `diffusion-peft`.
        words: its command line without `--out`.
        owner: who may stop and delete it; nobody in particular if it is empty.
        created: seconds since 1970.
    """

    page: str
    name: str
    program: str
    words: tuple[str, ...]
    owner: str
    created: float


@dataclass(frozen=True)
class End:
    """How a run ended: the state, when, and a sentence about it."""

    state: State
    at: float
    said: str = ""


@dataclass(frozen=True)
class Run:
    """One run; its state is what the disk says at the moment of asking."""

    path: Path
    request: Request

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def out(self) -> Path:
        return self.path / "out"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def end(self) -> End | None:
        data = _read(self.path / "end.json")
        return None if data is None else End(**data)

    @property
    def process(self) -> dict[str, Any] | None:
        """`pid` and `born` of the process that does it."""
        return _read(self.path / "process.json")

    @property
    def state(self) -> State:
        if (end := self.end) is not None:
            return end.state
        process = self.process
        if process is None:
            return "queued"
        if alive(process["pid"], process["born"]):
            return "running"
        return end.state if (end := self.end) is not None else "broken"  # it may have ended since

    def claim(self, pid: int) -> bool:
        """Make this run that of a process; whether no other has it."""
        aside = self.path / f"process-{pid}.json"
        write_json(aside, {"pid": pid, "born": born(pid)})
        try:
            os.link(aside, self.path / "process.json")
        except FileExistsError:
            return False
        finally:
            aside.unlink()
        return True

    def kept(self) -> str:
        """What a run that was stopped has left; checkpoints are whole or absent."""
        steps = {
            mark.parents[3].name: int(mark.parent.name.removeprefix("step-"))
            for mark in sorted(self.out.glob("*/seed-*/checkpoint/step-*/state.json"))
        }
        finished = dict.fromkeys(place.parents[1].name for place in sorted(self.out.glob("*/seed-*/result.json")))
        said = [f"{method} step {step}" for method, step in steps.items() if method not in finished]
        parts = [f"the last checkpoints are kept ({', '.join(said)})"] if said else []
        parts += [f"finished: {', '.join(finished)}"] if finished else []
        return "; ".join(parts) or "nothing had been saved yet"

    def finish(self, state: State, said: str = "") -> None:
        """Write the end, unless there is one."""
        if not (self.path / "end.json").exists():
            write_json(self.path / "end.json", asdict(End(state, time.time(), said)))


class Runs:
    """All runs below one folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / _DELETED).mkdir(parents=True, exist_ok=True)

    def create(
        self, page: str, name: str, program: str, words: list[str], owner: str, given: Sequence[Path] = ()
    ) -> Run:
        """A new run that waits, with copies of the files it was given."""
        request = Request(page, name, program, tuple(words), owner, time.time())
        path = self.folder / secrets.token_hex(16)
        aside = path.with_name(f".new-{path.name}")
        aside.mkdir()
        if given:
            (aside / GIVEN).mkdir()
        for file in given:
            shutil.copyfile(file, aside / GIVEN / file.name)
        write_json(aside / "request.json", asdict(request))
        aside.rename(path)
        return Run(path, request)

    def find(self, run_id: str) -> Run | None:
        """The run of this id."""
        return self.read(self.folder / run_id) if _ID.fullmatch(run_id or "") else None

    @staticmethod
    def read(path: Path) -> Run | None:
        """The run in this folder, if there is one."""
        data = _read(path / "request.json")
        return None if data is None else Run(path, Request(**{**data, "words": tuple(data["words"])}))

    def all(self) -> list[Run]:
        """Every run, the oldest first."""
        found = [run for path in self.folder.iterdir() if (run := self.find(path.name)) is not None]
        return sorted(found, key=lambda run: (run.request.created, run.id))

    def of(self, owner: str) -> list[Run]:
        """Those of one visitor, the newest first."""
        return [run for run in reversed(self.all()) if owner and run.request.owner == owner]

    def delete(self, run: Run) -> None:
        """Put it where it can be taken back from for a while.

        Raises:
            RefusedError: its process lives.
        """
        if run.state == "running":
            raise RefusedError("a run that goes on cannot be deleted: cancel it first")
        target = self.folder / _DELETED / run.id
        run.path.rename(target)
        (target / "deleted").touch()

    def restore(self, run_id: str, owner: str) -> Run | None:
        """Take a deletion back."""
        if not _ID.fullmatch(run_id or ""):
            return None
        place = self.folder / _DELETED / run_id
        data = _read(place / "request.json")
        if data is None or data["owner"] != owner:
            return None
        (place / "deleted").unlink(missing_ok=True)
        place.rename(self.folder / run_id)
        return self.find(run_id)

    def sweep(self, limit: int) -> list[str]:
        """Remove for good what was deleted long ago, then the oldest ended runs until the rest fits into `limit` bytes;
        the ids of these."""
        for place in (self.folder / _DELETED).iterdir():
            mark = place / "deleted"
            if not mark.exists() or time.time() - mark.stat().st_mtime > KEPT_DELETED:
                shutil.rmtree(place, ignore_errors=True)
        sizes = {run.id: _size(run.path) for run in self.all()}
        total, removed = sum(sizes.values()), []
        for run in self.all():
            if total <= limit:
                break
            if run.state in ENDED:
                shutil.rmtree(run.path, ignore_errors=True)
                total -= sizes[run.id]
                removed.append(run.id)
        return removed


def _size(folder: Path) -> int:
    return sum(_bytes(folder))


def _bytes(folder: Path) -> Iterator[int]:
    for path in folder.rglob("*"):
        try:
            yield path.lstat().st_size
        except OSError:  # a living run's files come and go
            continue


def _read(path: Path) -> dict[str, Any] | None:
    """What the file holds; nothing where it is missing."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
