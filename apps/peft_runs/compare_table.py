"""The comparison as a table for the terminal."""

from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from peft_runs import compare_words as words
from peft_runs.compare_columns import Column
from peft_runs.compare_notes import notes
from peft_runs.compare_results import Results, Row

METHOD, BETWEEN = "method", 2


def show(results: Results, console: Console) -> None:
    """Print the table, in as many pieces as the width asks for, the failures and the notes."""
    for table in pieces(lines(results), console.width):
        console.print(table)
        console.print()
    whole = not console.is_terminal  # a log's lines are not broken
    for row in results.failed:
        console.print(f"[red]{row.method} failed: {escape(row.failure or '')}[/red]", highlight=False, soft_wrap=whole)
    for note in notes(results):
        console.print(f"[dim]{escape(note)}[/dim]", highlight=False, soft_wrap=whole)


def lines(results: Results) -> list[Mapping[str, str]]:
    """A line a method, words by heading, in the record's order; the base model's before, what failed after."""
    blank = dict.fromkeys([METHOD, *headings(results)], "")
    found = [{**blank, METHOD: row.method, **cells(row, results)} for row in results.finished]
    if results.base is not None:
        figures = {c.heading: words.metric(results.base.get(c.name), None, c.share) for c in results.columns}
        found.insert(0, {**blank, METHOD: "base model", **figures})
    first = results.columns[0].heading
    return [*found, *({**blank, METHOD: row.method, first: "failed"} for row in results.failed)] or [blank]


def pieces(found: list[Mapping[str, str]], width: int) -> Iterator[Table]:
    """All columns, those beside one another that fit; each piece begins with the methods."""
    need = {heading: max(len(text) for text in (heading, *(line[heading] for line in found))) for heading in found[0]}
    room, chosen = width - need[METHOD], [METHOD]
    for heading in [heading for heading in found[0] if heading != METHOD]:
        if len(chosen) > 1 and room < need[heading] + BETWEEN:
            yield piece(found, chosen)
            room, chosen = width - need[METHOD], [METHOD]
        room -= need[heading] + BETWEEN
        chosen.append(heading)
    yield piece(found, chosen)


def piece(found: list[Mapping[str, str]], chosen: list[str]) -> Table:
    """The chosen columns; lines that failed are red."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 1))
    for heading in chosen:
        table.add_column(heading, justify="left" if heading == METHOD else "right", no_wrap=True)
    for line in found:
        style = "red" if "failed" in line.values() else None
        table.add_row(*(line[heading] for heading in chosen), style=style)
    return table


def headings(results: Results) -> list[str]:
    """The columns after the method's name."""
    counts = ["trained", "with head"] if results.has_head else ["trained"]
    return [*counts, *(column.heading for column in results.columns), "step", "memory", "file", "merging"]


def cells(row: Row, results: Results) -> dict[str, str]:
    """The figures of a finished method as words, by heading."""
    counts = [words.count(row.trainable_parameters_without_head), words.count(row.trainable_parameters)]
    figures = [figure(row, column) for column in results.columns]
    rest = [
        words.milliseconds(row.step_seconds),
        words.size(row.peak_bytes),
        words.size(row.adapter_bytes),
        words.difference(row.merged_difference),
    ]
    found = [*(counts if results.has_head else counts[:1]), *figures, *rest]
    return dict(zip(headings(results), found, strict=True))


def figure(row: Row, column: Column) -> str:
    """One figure of a method as words, with its deviation over seeds."""
    spread = row.figures.get(column.name)
    return words.NONE if spread is None else words.metric(spread.mean, spread.deviation, column.share)
