"""A grid of pictures: a row a model, the same prompts and seeds in every row, a strength beside each, and a wipe."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from peft_compare.look import glyph

# What its clicks and sliders do; `strength` goes to the server, the wipe needs none.
SCRIPT = (Path(__file__).with_name("grid.js")).read_text(encoding="utf-8")
STRONGEST, STEP = 1.5, 0.05


@dataclass(frozen=True)
class Column:
    """What a picture was asked for; the same prompt stands over all its seeds."""

    prompt: str
    seed: int | None = None

    @property
    def words(self) -> str:
        return f"“{self.prompt}”" + ("" if self.seed is None else f", seed {self.seed}")


@dataclass(frozen=True)
class GridRow:
    """One model's pictures.

    Attributes:
        name: the row's own, by which its slider is known.
        method: whose marker it has; none for the base model.
        pictures: addresses; none while they are being drawn.
        said: time of a picture, or why there is none.
        weight: where its slider stands; none where it has none.
        hints: addresses of what steered it.
    """

    name: str
    method: str | None = None
    pictures: Sequence[str] | None = None
    said: str = ""
    failed: bool = False
    weight: float | None = None
    hints: Sequence[str] = ()


def grid(rows: Sequence[GridRow], columns: Sequence[Column], label: str) -> str:
    """The grid; a click on a picture opens the wipe between it and the first row's."""
    if not rows:
        return ""
    groups: list[list] = []
    for column in columns:
        if groups and groups[-1][0] == column.prompt:
            groups[-1][1] += 1
        else:
            groups.append([column.prompt, 1])
    prompts = "".join(f'<th scope="colgroup" colspan="{count}">{escape(prompt)}</th>' for prompt, count in groups)
    seeds = "".join(f'<th scope="col">{"" if c.seed is None else c.seed}</th>' for c in columns)
    seeded = any(column.seed is not None for column in columns)
    second = f'<tr><th scope="row" class="quiet">seed</th>{seeds}</tr>' if seeded else ""
    body = "".join(_row(row, rows[0].name, columns) for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table class="grid">'
        f'<caption class="hidden">{escape(label)}</caption><thead><tr><td></td>{prompts}</tr>{second}</thead>'
        f"<tbody>{body}</tbody></table></div>{WIPE}"
    )


WIPE = (
    '<figure class="wipe" hidden><div class="wiped"><img class="before" alt=""><img class="after" alt=""></div>'
    '<label>Before <input type="range" min="0" max="100" value="50" data-wipe-at aria-label="How much of the picture '
    'shows the base model"> after</label><figcaption class="quiet" aria-live="polite"></figcaption>'
    '<button type="button" class="plain-button" data-wipe-close>Close</button></figure>'
)


def _row(row: GridRow, first: str, columns: Sequence[Column]) -> str:
    mark = glyph(row.method) if row.method else ""
    name = escape(row.name)
    slider = ""
    if row.weight is not None:
        slider = (
            f'<label class="strength"><span class="quiet">strength</span><input type="range" min="0" max="{STRONGEST}" '
            f'step="{STEP}" value="{row.weight:g}" data-strength="{name}" aria-label="Strength of {name}">'
            f"<output>{row.weight:.2f}</output></label>"
        )
    hints = "".join(f'<img class="hint" src="{one}" alt="what steers {name}">' for one in row.hints)
    kind = "failed" if row.failed else "quiet"
    said = f'<span class="said {kind}">{escape(row.said)}</span>'
    head = f'<th scope="row"><span class="name">{mark}{name}</span>{hints}{slider}{said}</th>'
    cells = ""
    for place, column in enumerate(columns):
        if row.pictures is None or place >= len(row.pictures):
            waits = row.pictures is None and not row.failed
            cells += f'<td><span class="{"skeleton" if waits else "nothing"}"></span></td>'
            continue
        words = escape(f"{row.name}: {column.words}")
        against = "" if row.name == first else f"; compare with {escape(first)}"
        cells += (
            f'<td><button type="button" data-wipe="{place}" title="{words}" aria-label="{words}{against}">'
            f'<img src="{row.pictures[place]}" alt=""></button></td>'
        )
    return f'<tr data-row="{name}">{head}{cells}</tr>'
