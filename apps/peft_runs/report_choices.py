"""Pictures for the report of what methods chose to train, where a run has left some; of the first seed."""

import base64
from dataclasses import dataclass
from pathlib import Path

from peft_runs.compare_results import Results
from peft_runs.selection import ALLOCATION, SELECTION

# The file, and what it shows for those who do not see it.
_SHOWN = (
    (SELECTION, "Map of the tensors that {method} trains: blocks down, kinds of tensors across, by the share trained."),
    (ALLOCATION, "How {method} divided its budget between layers, round by round."),
)


@dataclass(frozen=True)
class Choice:
    """One method's pictures: `data:` addresses with a sentence each."""

    method: str
    pictures: list[tuple[str, str]]


def choices(results: Results, folder: Path) -> list[Choice]:
    """The pictures that the compared runs below `folder` have left."""
    found = []
    for row in results.finished:
        run = folder / row.runs[0].place
        left = [(run / name, said) for name, said in _SHOWN if (run / name).is_file()]
        pictures = [(_address(path), said.format(method=row.method)) for path, said in left]
        if pictures:
            found.append(Choice(row.method, pictures))
    return found


def _address(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
