"""The table of a comparison, sorted by any of its columns, and the notes that belong to it."""

from collections.abc import Sequence
from html import escape

from peft_compare.look import glyph, scroll
from peft_compare.parts.downloads import of_row
from peft_compare.parts.pins import pin
from peft_compare.runs import Run
from peft_runs import compare_words as words
from peft_runs.compare_notes import notes
from peft_runs.compare_results import Results, Row
from peft_runs.compare_table import cells, headings

LABEL = "Results of each method"
ABOUT = {
    "trained": "trainable parameters without the head",
    "with head": "all trainable parameters",
    "step": "median of a training step, measured alone after all training",
    "memory": "peak of a training step above the loaded model",
    "file": "size of the adapter on the disk",
    "merging": "largest difference of the outputs after merging",
}

MEASURED = {"step": "the step times"}  # column → what a record calls it where it could not be measured


def table(results: Results, run: Run, closer: Sequence[str] = ()) -> str:
    """A row a method, whose name is a button for those in `closer`; what failed says why."""
    names = headings(results)
    heads = "".join(_head(name) for name in ["method", *names])
    rows = [_row(row, results, run, closer) for row in results.finished]
    rows += [_failed(row, len(names)) for row in results.failed]
    said = "".join(f"<li>{escape(note)}</li>" for note in notes(results))
    table = (
        f'<table class="data results"><caption class="hidden">{LABEL}</caption><thead><tr>{heads}'
        f'<th scope="col">take along</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )
    return f'<div class="part">{scroll(LABEL, table)}<ul class="notes">{said}</ul></div>'


def _head(name: str) -> str:
    about = escape(ABOUT.get(name, ""))
    button = f'<button type="button" class="sort" data-do="sort" title="{about}">{escape(name)}</button>'
    return f'<th scope="col">{button}</th>'


def _row(row: Row, results: Results, run: Run, closer: Sequence[str]) -> str:
    values = _values(row, results)
    unmeasured = {column: results.unmeasured.get(what) for column, what in MEASURED.items()}
    parts = []
    for name, text in cells(row, results).items():
        reason = (row.merged_reason if name == "merging" else unmeasured.get(name)) if text == words.NONE else None
        why = f' title="{escape(reason)}"' if reason else ""
        value = values.get(name)
        parts.append(f'<td data-value="{"" if value is None else value}"{why}>{escape(text)}</td>')
    name = pin(row.method, closer, f"{glyph(row.method)}{escape(row.method)}")
    return (
        f'<tr data-method="{escape(row.method)}"><th scope="row" data-value="{escape(row.method)}">{name}</th>'
        f"{''.join(parts)}<td>{of_row(row, run.id, run.out)}</td></tr>"
    )


def _failed(row: Row, columns: int) -> str:
    return (
        f'<tr><th scope="row" data-value="{escape(row.method)}">{glyph(row.method)}{escape(row.method)}</th>'
        f'<td class="failed" colspan="{columns + 1}" data-value="">failed: {escape(row.failure or "")}</td></tr>'
    )


def _values(row: Row, results: Results) -> dict[str, float | None]:
    """What the columns are sorted by."""
    found: dict[str, float | None] = {
        "trained": row.trainable_parameters_without_head,
        "with head": row.trainable_parameters,
        "step": row.step_seconds,
        "memory": row.peak_bytes,
        "file": row.adapter_bytes,
        "merging": row.merged_difference,
    }
    for column in results.columns:
        spread = row.figures.get(column.name)
        found[column.heading] = None if spread is None else spread.mean
    return found
