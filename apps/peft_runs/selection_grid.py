"""Tensors of a model as cells of a grid: a row for each block, a column for each kind of tensor."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

# Up to the last member of a list of blocks: such lists have names in the plural (blocks.3, transformer_blocks.0).
_BLOCK = re.compile(r"^(?:.*\.)?\w+s\.\d+(?=\.)")
_WORDLESS = re.compile(r"\d+|weight|bias")


@dataclass(frozen=True)
class Grid:
    """Where each name stands.

    Attributes:
        rows: the blocks' names; `""` for what stands outside of blocks.
        columns: the kinds: what follows a block's name.
        places: row and column of each name.
    """

    rows: list[str]
    columns: list[str]
    places: dict[str, tuple[int, int]]

    @property
    def row_labels(self) -> list[str]:
        """The block's number where all are of one list, else initials and numbers: `d0 a1 t0`."""
        if len({row.rpartition(".")[0] for row in self.rows if row}) <= 1:
            return [row.rpartition(".")[2] or "–" for row in self.rows]
        return [re.sub(r"([A-Za-z])\w*\.?(\d*)\.?", r"\1\2 ", row).strip() or "–" for row in self.rows]

    @property
    def column_labels(self) -> list[str]:
        """The shortest end of each kind's name that no other ends with."""
        return [_shortest(column, self.columns) for column in self.columns]


def grid_of(names: Iterable[str]) -> Grid:
    """Rows and columns in the order of their first names."""
    rows: dict[str, int] = {}
    columns: dict[str, int] = {}
    places = {}
    for name in names:
        found = _BLOCK.match(name)
        block = found[0] if found else ""
        kind = name[len(block) :].lstrip(".")
        places[name] = rows.setdefault(block, len(rows)), columns.setdefault(kind, len(columns))
    return Grid(list(rows), list(columns), places)


def _shortest(name: str, among: list[str]) -> str:
    words = name.split(".")
    for start in range(len(words) - 1, -1, -1):
        end = words[start:]
        if not _WORDLESS.fullmatch(end[0]) and sum(other.split(".")[-len(end) :] == end for other in among) == 1:
            return ".".join(end)
    return name
