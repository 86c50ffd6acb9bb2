"""A benchmark's record as the papers' table: Markdown and LaTeX."""

from collections.abc import Callable, Sequence
from pathlib import Path

from peft_runs.benchmark_results import BenchmarkResults, BenchmarkRow, Figure
from peft_runs.compare_words import NONE, is_share
from peft_runs.durable import write_json, write_text

Column = tuple[str, Callable[[BenchmarkRow], Figure | None]]


def write_tables(results: BenchmarkResults, out: Path) -> None:
    """`table.json`, `table.md` and `table.tex`."""
    write_json(out / "table.json", results.as_dict())
    write_text(out / "table.md", markdown(results))
    write_text(out / "table.tex", latex(results))


def columns(results: BenchmarkResults) -> list[Column]:
    """Tasks, groups and means, in the order they are printed."""
    found: list[Column] = [(task, lambda row, task=task: row.figures.get(task)) for task in results.tasks]
    if len(results.groups) > 1:
        found += [(group, lambda row, group=group: row.groups[group]) for group in results.groups]
        found.append(("mean of groups", lambda row: row.mean_of_groups))
    if len(results.tasks) > 1:
        found.append(("mean of tasks", lambda row: row.mean_of_tasks))
    return found


def body(
    results: BenchmarkResults, spread: Callable[[str, str], str], bold: Callable[[str], str]
) -> list[tuple[BenchmarkRow, list[str]]]:
    """Every row with its figures as words; with several seeds the highest mean of a column is bold."""
    shown = columns(results)
    best = [_highest([take(row) for row in results.rows]) if results.ranked else None for _, take in shown]
    lines = []
    for row in results.rows:
        words = []
        for (_, take), highest in zip(shown, best, strict=True):
            figure = take(row)
            text = NONE if figure is None else _words(figure, is_share(results.metric), spread)
            words.append(bold(text) if figure is not None and figure.mean == highest else text)
        lines.append((row, words))
    return lines


def markdown(results: BenchmarkResults) -> str:
    """The table, what it rests on, the chosen settings, and what failed."""
    heads = ["method", "trained (M)", "with head (M)", *(name for name, _ in columns(results))]
    rows = body(results, lambda value, deviation: f"{value} ± {deviation}", lambda text: f"**{text}**")
    lines = [f"# {results.title}", "", _row(heads), _row(["---", *["---:"] * (len(heads) - 1)])]
    lines += [_row([row.method, *_parameters(row), *words]) for row, words in rows]
    lines += ["", *(f"- {note}" for note in notes(results)), "", "## Chosen settings", ""]
    lines += [_row(["method", *results.tasks]), _row(["---"] * (len(results.tasks) + 1))]
    lines += [_row([row.method, *(_chosen(row, task) for task in results.tasks)]) for row in results.rows]
    failures = [(row.method, task, r.failure) for row in results.rows for task, r in row.tasks.items() if r.failure]
    if failures:
        lines += ["", "## Failed", "", *(f"- {task}, {method}: {failure}" for method, task, failure in failures)]
    return "\n".join([*lines, "", f"    {results.command}", ""])


def latex(results: BenchmarkResults) -> str:
    """A `tabular` for the packages booktabs and graphicx."""
    heads = [rf"\rotatebox{{90}}{{{_escaped(name)}}}" for name, _ in columns(results)]
    rows = body(
        results, lambda value, deviation: rf"{value}{{\tiny$\,\pm\,${deviation}}}", lambda text: rf"\textbf{{{text}}}"
    )
    lines = [*(f"% {note}" for note in notes(results)), rf"\begin{{tabular}}{{lr{'c' * len(heads)}}}", r"\toprule"]
    lines += [" & ".join(["Method", "Params (M)", *heads]) + r" \\", r"\midrule"]
    for row, words in rows:
        cells = [text.replace(NONE, "--") for text in (_parameters(row)[0], *words)]
        lines.append(" & ".join([_escaped(row.method), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def notes(results: BenchmarkResults) -> list[str]:
    """What the figures rest on."""
    model, optim, run = (results.shared[name] for name in ("model", "optim", "run"))
    several = len(results.seeds) > 1
    seeds = f"mean ± standard deviation (n − 1) of {len(results.seeds)} seeds" if several else "one seed: not ranked"
    said = [
        f"{results.metric.capitalize()} on the test part after the last epoch; {seeds}.",
        "Settings chosen on the validation part alone, with one seed; then trained on training and validation part.",
        f"Model {model['name']}{'' if model.get('pretrained') else ', not pretrained'}; {run['epochs']} epochs, batch "
        f"{optim['batch_size']}, AdamW.",
        "Trained parameters: mean over tasks.",
    ]
    if results.budget is not None:
        said.append(
            f"Methods of adjustable size are set as near as possible to {results.budget:,} parameters without the head."
        )
    if len(results.tasks) < results.tasks_in_all:
        said.append(f"{len(results.tasks)} of {results.tasks_in_all} tasks: the means are over these.")
    return said


def _words(figure: Figure, share: bool, spread: Callable[[str, str], str]) -> str:
    factor, digits = (100, 1) if share else (1, 4)
    value = f"{factor * figure.mean:.{digits}f}"
    return value if figure.deviation is None else spread(value, f"{factor * figure.deviation:.{digits}f}")


def _highest(figures: Sequence[Figure | None]) -> float | None:
    return max((figure.mean for figure in figures if figure is not None), default=None)


def _parameters(row: BenchmarkRow) -> list[str]:
    return [NONE if n is None else f"{n / 1e6:.3f}" for n in (row.parameters, row.parameters_with_head)]


def _chosen(row: BenchmarkRow, task: str) -> str:
    result = row.tasks.get(task)
    if result is None or not result.chosen:
        return NONE
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in result.chosen.items())


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return text.replace("_", r"\_").replace("&", r"\&").replace("%", r"\%")
