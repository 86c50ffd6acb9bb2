"""The comparison as one HTML file that needs nothing else: no network, no scripts, light and dark, wide and narrow."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from peft_runs import compare_words as words
from peft_runs.compare_notes import notes
from peft_runs.compare_results import Results
from peft_runs.compare_table import cells, figure
from peft_runs.durable import write_text
from peft_runs.figure import as_svg, drawings
from peft_runs.figure_planes import plane_of
from peft_runs.figure_style import SHADES, marker_outline, shade
from peft_runs.report_choices import choices
from peft_runs.report_pictures import Pictures, as_address, choose, part_sizes
from peft_runs.report_samples import samples

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
    environment.globals |= {"capitalised": capitalised, "words": words, "shade": shade, "outline": marker_outline}
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
        samples=samples(results, target.parent),
        address=as_address,
        settings=settings,
        shades=SHADES,
    )
    write_text(target, text)


def capitalised(text: str) -> str:
    """With a capital at its beginning."""
    return text[:1].upper() + text[1:]


def title(results: Results) -> str:
    """`vit_mini on digits: 8 methods compared`."""
    count = len(results.rows)
    return f"{results.model} on {results.data}: {count} {'method' if count == 1 else 'methods'} compared"


def facts(results: Results, task: object) -> list[tuple[str, str]]:
    """What was compared, on what, by whom: short lines for the head of the page."""
    shared, machine = results.shared, results.machine
    start = "pretrained" if shared.get("model.pretrained", True) else "untrained start"
    sizes, data = part_sizes(task), results.data
    if sizes is not None:
        data += f", {sizes[0]:,} pictures to train, {sizes[1]:,} to test"
    seeds = ", ".join(map(str, results.seeds))
    threads = f", {machine['threads']} thread each" if machine["threads"] == 1 else ""
    hardware = machine["accelerator"] or f"{machine['processor']}, {machine['cores']} cores"
    return [
        ("Model", f"{results.model}, {start}"),
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
    drawn = drawings(results)
    plane = plane_of(results)
    against = plane.heading if plane else f"{results.metric.capitalize()} against trainable parameters"
    headings, spoken = [against, "How training went"], [_ends(results), _course(results)]
    made = []
    for (name, draw), heading, sentence in zip(drawn.items(), headings, spoken, strict=True):
        wide, narrow = (Markup(as_svg(results, draw, narrow)) for narrow in (False, True))
        made.append({"name": name, "heading": heading, "sentence": sentence, "wide": wide, "narrow": narrow})
    return made


def _ends(results: Results) -> str:
    said = []
    for row in results.finished:
        found = ", ".join(f"{column.heading} {figure(row, column)}" for column in results.columns)
        said.append(f"{row.method} {found}, with {row.trainable_parameters:,} trainable parameters")
    return "; ".join(said) + "."


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
