"""The comparison as one HTML file that needs nothing else: no network, no scripts, light and dark, wide and narrow."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from peft_runs import compare_words as words
from peft_runs.compare_notes import notes
from peft_runs.compare_results import Results
from peft_runs.compare_table import cells
from peft_runs.durable import write_text
from peft_runs.figure import as_svg, drawings
from peft_runs.figure_style import SHADES, marker_outline, shade
from peft_runs.report_choices import choices
from peft_runs.report_pictures import Pictures, ShowsPictures, choose

TEMPLATE = "report.html.j2"


def write_report(results: Results, task: object, target: Path) -> None:
    """Write the report of a comparison; `task` has the pictures, if there are any."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).resolve().parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"words": words, "shade": shade, "outline": marker_outline}
    text = environment.get_template(TEMPLATE).render(
        results=results,
        title=title(results),
        facts=facts(results, task),
        cells={row.method: cells(row, results) for row in results.finished},
        bars=bars(results),
        notes=notes(results),
        figures=figures(results),
        choices=choices(results, target.parent),
        pictures=pictures(results, task),
        settings=settings,
        shades=SHADES,
    )
    write_text(target, text)


def title(results: Results) -> str:
    """`vit_mini on digits: 8 methods compared`."""
    count = len(results.rows)
    model, data = results.shared.get("model.name", results.program), results.shared.get("data.name", results.recipe)
    return f"{model} on {data}: {count} {'method' if count == 1 else 'methods'} compared"


def facts(results: Results, task: object) -> list[tuple[str, str]]:
    """What was compared, on what, by whom: short lines for the head of the page."""
    shared, machine = results.shared, results.machine
    start = "pretrained" if shared.get("model.pretrained") else "untrained start"
    data = str(shared.get("data.name", results.recipe))
    if isinstance(task, ShowsPictures):
        train, test = len(task.train_pictures.labels), len(task.test_pictures.labels)
        data += f", {train:,} pictures to train, {test:,} to test"
    seeds = ", ".join(map(str, results.seeds))
    threads = f", {machine['threads']} thread each" if machine["threads"] == 1 else ""
    hardware = machine["accelerator"] or f"{machine['processor']}, {machine['cores']} cores"
    return [
        ("Model", f"{shared.get('model.name', results.program)}, {start}"),
        ("Data", data),
        ("Budget", f"{shared.get('run.epochs', '?')} epochs, batches of {shared.get('optim.batch_size', '?')}, AdamW"),
        ("Seeds" if len(results.seeds) > 1 else "Seed", seeds),
        ("Machine", f"{hardware}; {results.jobs} runs side by side{threads}"),
        ("Date", results.created),
    ]


def bars(results: Results) -> dict[str, dict[str, float]]:
    """Step time and peak memory of each method in percent of the largest."""
    found: dict[str, dict[str, float]] = {}
    for name in ("step_seconds", "peak_bytes"):
        values = {row.method: getattr(row, name) or 0 for row in results.finished}
        largest = max(values.values(), default=0) or 1
        for method, value in values.items():
            found.setdefault(method, {})[name] = round(100 * value / largest, 1)
    return found


def figures(results: Results) -> list[dict[str, Any]]:
    """Each figure drawn wide and narrow, with a heading and a sentence for those who do not see it."""
    if not results.finished:
        return []
    headings = [f"{results.metric.capitalize()} against trainable parameters", "How training went"]
    spoken = [_ends(results), _course(results)]
    made = []
    for (name, draw), heading, sentence in zip(drawings(results).items(), headings, spoken, strict=True):
        wide, narrow = (Markup(as_svg(results, draw, narrow)) for narrow in (False, True))
        made.append({"name": name, "heading": heading, "sentence": sentence, "wide": wide, "narrow": narrow})
    return made


def _ends(results: Results) -> str:
    said = [
        f"{row.method} {words.metric(row.metric, row.deviation, results.share)} with {row.trainable_parameters:,}"
        for row in results.finished
    ]
    return f"Test {results.metric} by trainable parameters: {'; '.join(said)}."


def _course(results: Results) -> str:
    said = []
    for row in results.finished:
        losses = row.runs[0].curve.losses
        said.append(f"{row.method} {losses[0]:.2f} to {losses[-1]:.2f}")
    return f"Mean training loss of the first and of the last epoch: {'; '.join(said)}."


def pictures(results: Results, task: object) -> Pictures | None:
    """Pictures with predictions, where the task has some."""
    return choose(results, task) if results.finished else None


def settings(values: dict[str, Any]) -> str:
    """`optim.lr 0.003, method.r 8`."""
    return ", ".join(f"{key} {value}" for key, value in values.items()) or "as the shared recipe"
