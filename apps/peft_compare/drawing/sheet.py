"""From answers of the process that draws to the grid that a page shows."""

from collections.abc import Mapping, Sequence
from typing import Any

from peft_compare.drawing.requests import Draw, Line
from peft_compare.parts.grid import Column, GridRow, grid
from peft_kernels.registry import methods
from peft_runs.compare_words import milliseconds


def column_heads(request: Draw) -> list[Column]:
    """Prompt by prompt, all seeds of each."""
    return [Column(prompt, seed) for prompt in request.prompts for seed in request.seeds]


def drawn_row(line: Line, answer: Mapping[str, Any], slider: bool) -> GridRow:
    """A row that was drawn, or why it was not."""
    weight = line.adapters[0].weight if slider and len(line.adapters) == 1 else None
    if "failure" in answer:
        return GridRow(line.name, marked(line), said=answer["failure"], failed=True, weight=weight)
    return GridRow(
        line.name,
        marked(line),
        [address(picture) for picture in answer["pictures"]],
        f"{milliseconds(answer['milliseconds'] / 1000)} a picture",
        weight=weight,
        hints=[address(picture) for picture in answer["conditions"]],
    )


def sheet(request: Draw, rows: Sequence[GridRow], heads: Sequence[Column]) -> str:
    """What is drawn so far; the rest is told to be on its way."""
    waiting = [GridRow(line.name, marked(line), said="drawing…") for line in request.rows[len(rows) :]]
    return grid([*rows, *waiting], heads, "The same prompts and seeds, side by side")


def marked(line: Line) -> str | None:
    """The method whose marker a row has: none for the base model and for mixtures."""
    name = line.name.partition(",")[0]
    return name if len(line.adapters) == 1 and name in methods() else None


def address(picture: str) -> str:
    """A picture of an answer as it stands in a page."""
    return f"data:image/png;base64,{picture}"
