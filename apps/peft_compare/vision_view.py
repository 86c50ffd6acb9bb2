"""What the Vision page shows of a run, drawn from what lies on the disk."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from peft_compare.course import Course, course_of
from peft_compare.look import notice
from peft_compare.parts.chart import Axis, Series, chart
from peft_compare.parts.confusion import confusion, disagreements
from peft_compare.parts.curves import curves
from peft_compare.parts.downloads import of_run
from peft_compare.parts.heat import heat
from peft_compare.parts.progress import lanes
from peft_compare.parts.tables import table
from peft_compare.runs import Run
from peft_compare.shown import SHOWN, TILES
from peft_runs.compare_results import Results, Row, read_results
from peft_runs.compare_words import duration, is_share


def results_of(run: Run) -> Results | None:
    """The record of a comparison, once there is one."""
    path = run.out / "results.json"
    try:
        return _read_results(str(path), path.stat().st_mtime_ns)
    except (OSError, ValueError, KeyError, TypeError):
        return None


@lru_cache(maxsize=64)
def _read_results(path: str, _changed: int) -> Results:
    with open(path, encoding="utf-8") as file:
        return read_results(json.load(file))


def shown_of(run: Run) -> Mapping[str, Any]:
    """Labels, classes and where the parameters went; nothing before they are worked out."""
    try:
        return json.loads((run.out / SHOWN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def watch(run: Run, position: int | None) -> str:
    """How far the run is."""
    state = run.state
    if state == "queued":
        place = f"number {position} in the queue" if position else "about to begin"
        return notice("kept", "Waiting", f"{place}. You can close this page; the run stays.")
    course = course_of(run)
    rows = lanes(course)
    if state == "running":
        return f'<p class="quiet" role="status">{_heading(course)}</p>{rows}'
    end = run.end
    said = end.said if end is not None else ""
    titles = {"failed": "The run failed", "broken": "The run broke off", "cancelled": "Cancelled"}
    if state == "done":
        return ""
    log = (
        "\n".join(run.log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:]) if run.log.exists() else ""
    )
    after = " What was finished is below." if results_of(run) else ""
    kind = "kept" if state == "cancelled" else "error"
    return notice(kind, titles[state], f"{said}.{after}", "" if state == "cancelled" else log) + rows


def _heading(course: Course) -> str:
    words = {"training": "Training", "starting": "Starting"}.get(course.phase, course.phase.capitalize())
    left = "" if course.seconds_left is None else f", about {duration(course.seconds_left)} of training left"
    return f"{words}{left}. You can close this page; the run goes on."


def live_curves(run: Run) -> str:
    """The curves of a run that goes on or was stopped."""
    course = course_of(run)
    judged: dict[str, list] = {}
    losses: dict[str, list] = {}
    for lane in course.lanes:
        judged.setdefault(lane.method, []).append(([x for x, _ in lane.judged], [y for _, y in lane.judged]))
        losses.setdefault(lane.method, []).append(lane.losses)
    return curves(course.metric, judged, losses)


def final_curves(results: Results) -> str:
    """The curves of a finished comparison."""
    judged = {row.method: [(one.curve.judged_epochs, one.curve.judged) for one in row.runs] for row in results.finished}
    losses = {row.method: [one.curve.losses for one in row.runs] for row in results.finished}
    return curves(results.metric, judged, losses)


def compared(run: Run) -> str:
    """Table, figures and heat maps of a finished comparison."""
    results = results_of(run)
    if results is None:
        return ""
    parts = [
        table(results, run, finished_methods(run)),
        f'<div class="side-by-side">{against_parameters(results)}</div>',
        heat(shown_of(run).get("where", {}), [row.method for row in results.finished]),
        of_run(run.id, run.out, run.request.program, run.request.words),
    ]
    return f'<div class="stack">{"".join(parts)}</div>'


def against_parameters(results: Results) -> str:
    """The metric against the trained parameters."""
    column = results.columns[0]
    share = is_share(column.name)
    rows = [row for row in results.finished if column.name in row.figures]
    series = [
        Series(
            row.method,
            [float(row.trainable_parameters or 0)],
            [row.figures[column.name].mean],
            [row.figures[column.name].deviation],
        )
        for row in rows
    ]
    x = Axis("trainable parameters, head included", lambda value: f"{value:,.0f}", logarithmic=True)
    y = Axis(column.heading, lambda value: f"{100 * value:.4g} %" if share else f"{value:.4g}")
    finding = ""
    if rows:
        best = max(rows, key=lambda row: row.figures[column.name].mean)
        finding = f"Highest: {best.method} with {y.write(best.figures[column.name].mean)}"
    title = f"{column.heading.capitalize()} against parameters"
    return chart(title, finding, series, x, y, lines=False, named=True, key="plane", size=(620, 290))


def looked_closer(run: Run, methods: Sequence[str]) -> str:
    """The confusion matrix of each method, and where two of them disagree."""
    results, shown = results_of(run), shown_of(run)
    if results is None or "labels" not in shown:
        return ""
    answers = {row.method: row.runs[0].predictions for row in results.finished if row.runs[0].predictions}
    chosen = [name for name in dict.fromkeys(methods) if name in answers]
    labels, classes = shown["labels"], shown["classes"]
    parts = [confusion(name, answers[name], labels, classes) for name in chosen]
    if len(chosen) == 2:
        address = f"/runs/{run.id}/files/out/{TILES}"
        pair = (answers[chosen[0]], answers[chosen[1]])
        parts.append(disagreements((chosen[0], chosen[1]), pair, labels, classes, dict(shown), address))
    hint = "Names in the table are buttons: one shows what a method takes for what, two where they disagree."
    return f'<p class="quiet">{hint}</p><div class="closer">{"".join(parts)}</div>'


def finished_methods(run: Run) -> list[str]:
    """Those that can be looked at more closely."""
    results = results_of(run)
    rows: list[Row] = [] if results is None else results.finished
    return [row.method for row in rows if row.runs and row.runs[0].predictions]
