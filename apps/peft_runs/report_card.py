"""The model card of a compared adapter: `README.md` in its folder, in the form that model hubs read."""

from pathlib import Path
from typing import Any

import yaml

from peft_runs import compare_words as words
from peft_runs.compare_results import Results, Row, RunResult
from peft_runs.compare_words import is_share
from peft_runs.durable import write_text
from peft_runs.report_pictures import ShowsPictures, part_sizes

LOAD = """```python
import timm
import vision_peft
from peft import PeftModel

base = timm.create_model({model!r}, pretrained=True, num_classes={classes})
model = PeftModel.from_pretrained(base, "path/to/this/folder").eval()
```
"""


def write_cards(results: Results, task: object, out: Path) -> None:
    """Write the card of every finished run."""
    for row in results.finished:
        for run in row.runs:
            write_text(out / run.place / "adapter" / "README.md", card(results, row, run, task))


def card(results: Results, row: Row, run: RunResult, task: object) -> str:
    """The card of one run as Markdown with a YAML head."""
    shared = results.shared
    model, data = results.model, results.data
    parts = [
        _head(results, row, run, model, data),
        f"# {row.method} for {model} on {data}\n",
        f"{row.summary}{f' ({row.paper})' if row.paper else ''}. Trained by `{results.program}` on {data}"
        f"{_pictures(task)}, {results.created}.\n",
        "## Use\n",
        _use(results, task, row.method, run),
        "## Settings\n",
        _table([("setting", "value"), *_settings(row, shared, run)]),
        f"Every field is in the run's `recipe.yaml`. The same run again:\n\n    {run.command}\n",
        "## Measured\n",
        _table([("figure", "value"), *_figures(results, row, run)]),
        f"On {results.machine['accelerator'] or results.machine['processor']}, with "
        + ", ".join(f"{name} {version}" for name, version in results.versions.items())
        + ".\n",
        "## Limits\n",
        f"The figures hold for the test part of {data} and seed {run.seed}. Nothing else was measured.\n",
    ]
    return "\n".join(parts)


def _head(results: Results, row: Row, run: RunResult, model: str, data: str) -> str:
    metrics = [{"type": name, "value": value} for name, value in run.figures.items()]
    head: dict[str, Any] = {
        "library_name": "peft",
        "base_model": model,
        "datasets": [data],
        "tags": ["vision-diffusion-peft", row.method],
        "model-index": [
            {
                "name": f"{model}-{data}-{row.method}",
                "results": [
                    {
                        "task": {"type": str(results.shared.get("task", "classification"))},
                        "dataset": {"name": data, "type": data},
                        "metrics": metrics,
                    }
                ],
            }
        ],
    }
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n"


def _pictures(task: object) -> str:
    sizes = part_sizes(task)
    classes = f" in {len(task.classes)} classes" if isinstance(task, ShowsPictures) else ""
    return "" if sizes is None else f" ({sizes[0]:,} pictures{classes})"


def _settings(row: Row, shared: dict[str, Any], run: RunResult) -> list[tuple[str, Any]]:
    """What the recipe sets, without where the data lay and without fields that are left open."""
    left_out = ("data.root", "task")
    common = [(key, value) for key, value in shared.items() if key not in left_out and value is not None]
    return [*row.settings.items(), *[pair for pair in common if not pair[0].startswith("method.")], ("seed", run.seed)]


def _use(results: Results, task: object, method: str, run: RunResult) -> str:
    if not results.shared.get("model.pretrained", True):
        return (
            f"The model below it had no pretrained weights; it is drawn anew from seed {run.seed} by the command under "
            "Settings. The adapter is of no use on another start.\n"
        )
    if isinstance(task, ShowsPictures):
        return LOAD.format(model=results.model, classes=len(task.classes))
    usage = getattr(task, "usage", None)
    return "" if usage is None else f"```python\n{usage(method)}```\n"


def _figures(results: Results, row: Row, run: RunResult) -> list[tuple[str, str]]:
    columns = {column.name: column for column in results.columns}
    found = [("trained parameters", words.count(row.trainable_parameters))]
    if results.has_head:
        found.append(("of these outside the classifier", words.count(row.trainable_parameters_without_head)))
    for name, value in run.figures.items():
        known = columns.get(name)
        heading = f"test {name}" if known is None or len(columns) == 1 else known.heading
        found.append((heading, words.metric(value, None, is_share(name) if known is None else known.share)))
    found += [
        ("training step, median", words.milliseconds(row.step_seconds)),
        ("peak memory of a step above the loaded model", words.size(run.peak_bytes)),
        ("file", words.size(run.adapter_bytes)),
    ]
    merged = words.difference(run.merged_difference) if row.merged_reason is None else f"no: {row.merged_reason}"
    return [*found, ("merging changes outputs by", merged)]


def _table(rows: list[tuple[Any, Any]]) -> str:
    lines = [f"| {left} | {str(right).replace('|', '/')} |" for left, right in rows]
    return "\n".join([lines[0], "|---|---|", *lines[1:]]) + "\n"
