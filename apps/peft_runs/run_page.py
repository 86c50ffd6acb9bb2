"""What a person looks at after one run: `curves.png`, the page `report.html`, and the adapter's card `README.md`.

They are made for tasks that say how their result is used: `usage(method)` is Python, `about()` are short facts.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from PIL import Image

from peft_kernels.registry import methods
from peft_runs import compare_words as words
from peft_runs.durable import write_text
from peft_runs.families import DIFFUSION, VISION
from peft_runs.metrics import read_metrics
from peft_runs.recipe import Recipe
from peft_runs.report_pictures import as_address
from peft_runs.run_curves import draw_run
from peft_runs.run_folder import RunFolder

CURVES, PAGE, CARD = "curves.png", "report.html", "README.md"
TURNING = "clouds.html"  # where a task of clouds leaves them to be turned
LARGEST = 1024  # pixels of a side of a picture in the page
SHOWN = 6  # grids


@dataclass(frozen=True)
class Grid:
    """A picture drawn in the course of the training, as a `data:` address."""

    step: int
    source: str
    width: int


def write_page(folder: RunFolder, recipe: Recipe, task: Any, result: dict[str, Any]) -> None:
    """Write all three; the card goes into the adapter's folder."""
    family = VISION if recipe.task in VISION.tasks() else DIFFUSION
    program = family.program
    draw_run(read_metrics(folder.metrics), task.metric, folder.path / CURVES)
    shown = {
        "title": f"{recipe.method.name or 'all weights'} on {recipe.model.name}",
        "program": program,
        "facts": {**task.about(), **figures(recipe, task, result)},
        "usage": task.usage(recipe.method.name),
        "command": f"{program} train --recipe {shlex.quote(str(folder.recipe))} --out FOLDER",
        "recipe": yaml.safe_dump(recipe.as_dict(), sort_keys=False),
        "turning": TURNING if (folder.path / TURNING).is_file() else None,
    }
    with Image.open(folder.path / CURVES) as curves:
        text = template("run.html.j2").render(
            **shown, curves=as_address(curves, 2 * LARGEST), grids=grids(folder), prompts=task.prompts()
        )
    write_text(folder.path / PAGE, text)
    write_text(folder.adapter / CARD, card(recipe, shown))


def template(name: str) -> Template:
    """A page of this package."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).resolve().parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def figures(recipe: Recipe, task: Any, result: dict[str, Any]) -> dict[str, str]:
    """The run's settings and what came out, in words."""
    return {
        "Training": f"{result['steps']:,} steps of {recipe.optim.batch_size}, learning rate {recipe.optim.lr:g}, "
        f"seed {recipe.run.seed}",
        "Trained parameters": words.count(result["trainable_parameters"]),
        f"Test {task.metric}": f"{result[task.metric]:.4f} (loss {result['loss']:.4f})",
        "Step": f"{words.milliseconds(result['step_seconds_median'])} (median)",
        "Peak memory": f"{words.size(result['peak_bytes'])} above the loaded model",
        "File": words.size(result["adapter_bytes"]),
    }


def grids(folder: RunFolder) -> list[Grid]:
    """The first grid, the last, and some between."""
    files = sorted(folder.samples.glob("step-*.png"))
    if len(files) > SHOWN:
        files = [files[round(place * (len(files) - 1) / (SHOWN - 1))] for place in range(SHOWN)]
    found = []
    for path in files:
        with Image.open(path) as picture:
            found.append(Grid(int(path.stem.partition("-")[2]), as_address(picture, LARGEST), picture.width))
    return found


def card(recipe: Recipe, shown: dict[str, Any]) -> str:
    """The card as Markdown with the YAML head that model hubs read."""
    method = methods().get(recipe.method.name or "")
    head = {
        "library_name": "peft" if method else "timm" if shown["program"] == VISION.program else "diffusers",
        "base_model": recipe.model.name,
        "tags": ["vision-diffusion-peft", recipe.method.name or "full"],
    }
    about = "All weights of the model are trained." if method is None else f"{method.summary} ({method.paper})."
    rows = "".join(f"| {name} | {value} |\n" for name, value in shown["facts"].items())
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n# {shown['title']}\n\n{about}\n\n## Use\n\n"
        f"```python\n{shown['usage']}```\n\n## Measured\n\n| | |\n|---|---|\n{rows}\n"
        f"The same run again, with the recipe beside this folder:\n\n    {shown['program']} train --recipe recipe.yaml "
        "--out FOLDER\n\n## Limits\n\nThe figures hold for these data and this seed; nothing else was measured.\n"
    )
