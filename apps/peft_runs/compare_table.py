"""The comparison as a table for the terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from peft_runs import compare_words as words
from peft_runs.compare_notes import notes
from peft_runs.compare_results import Results, Row


def show(results: Results, console: Console) -> None:
    """Print the table, the failures and the notes."""
    console.print(build(results))
    whole = not console.is_terminal  # a log's lines are not broken
    for row in results.failed:
        console.print(f"[red]{row.method} failed: {escape(row.failure or '')}[/red]", highlight=False, soft_wrap=whole)
    for note in notes(results):
        console.print(f"[dim]{escape(note)}[/dim]", highlight=False, soft_wrap=whole)


def build(results: Results) -> Table:
    """One row a method, in the record's order; a failed one in red, with its reason."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 1))
    table.add_column("method", no_wrap=True)
    for heading in ("trained", "with head", results.metric, "step", "memory", "file", "merging"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in results.finished:
        table.add_row(row.method, *cells(row, results))
    for row in results.failed:
        table.add_row(row.method, "", "", "failed", style="red")
    return table


def cells(row: Row, results: Results) -> list[str]:
    """The figures of a finished method as words, in the order of the columns."""
    return [
        words.count(row.trainable_parameters_without_head),
        words.count(row.trainable_parameters),
        words.metric(row.metric, row.deviation, results.share),
        words.milliseconds(row.step_seconds),
        words.size(row.peak_bytes),
        words.size(row.adapter_bytes),
        words.difference(row.merged_difference),
    ]
