"""The folder of one run: its names, its recipe, and whether it may be begun or gone on with.

recipe.yaml     every field, as the run used it
chosen.json     what the method decided from data before it was attached (SPT's plan)
metrics.jsonl   one line per step and evaluation
checkpoint/     the newest exact checkpoint, `step-<steps done>`
adapter/        what was trained: PEFT's format, or `model.safetensors` where the model itself was trained
samples/        pictures drawn in the course of the training, `step-<steps done>.png`, if the task draws some
selection.png   what a method with a plan or a budget trains; allocation.png how it divided the budget
curves.png, report.html   how the training went, with pictures, if the task says how its result is used
result.json     the final figures; written last, so that a run with a result is a finished run
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from peft_runs.checkpoint import latest_checkpoint
from peft_runs.durable import write_text
from peft_runs.errors import UsageError
from peft_runs.find import load_recipe
from peft_runs.read import differences, read_recipe
from peft_runs.recipe import Recipe
from peft_runs.task import Task

# What a resumed run may change, since no number depends on it.
FREE = ("run.workers", "run.tracker", "data.root", "data.cache")


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def chosen(self) -> Path:
        return self.path / "chosen.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoint"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    def read_result(self) -> dict[str, Any]:
        """The figures of a finished run.

        Raises:
            UsageError: there is no finished run here.
        """
        if not self.result.is_file():
            raise UsageError(f"{self.path} holds no finished run: result.json is missing")
        return json.loads(self.result.read_text(encoding="utf-8"))

    def begin(self, recipe: Recipe) -> None:
        """Make the folder and write the recipe into it.

        Raises:
            UsageError: it holds a run already.
        """
        if self.result.exists() or latest_checkpoint(self.checkpoints):
            raise UsageError(f"{self.path} holds a run already: add --resume to go on with it, or choose another --out")
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.recipe, yaml.safe_dump(recipe.as_dict(), sort_keys=False))

    def reopen(self, words: list[str], tasks: Mapping[str, type[Task]]) -> Recipe:
        """The recipe of the run that is here, for going on with it; `words` may change what no number depends on.

        Raises:
            UsageError: there is nothing to go on with, or the run was begun with other settings.
        """
        if not self.recipe.is_file() or not (self.result.exists() or latest_checkpoint(self.checkpoints)):
            raise UsageError(
                f"nothing to resume in {self.path}: it holds no checkpoint; start the run without --resume"
            )
        stored = load_recipe(self.recipe)
        recipe = read_recipe(stored, words, tasks)
        for key, before, now in differences(read_recipe(stored, [], tasks), recipe):
            if key not in FREE:
                raise UsageError(
                    f"the run in {self.path} was begun with {key} {before!r}, found {now!r}: "
                    "resume it without this change, or start a new run"
                )
        return recipe


def adapter_in(folder: Path) -> Path:
    """An adapter's folder or file as it is given; of a run's folder, the adapter in it."""
    inner = RunFolder(folder).adapter
    return inner if inner.is_dir() else folder


def first_process() -> bool:
    """Whether this is the only process or the first of several (as torchrun and accelerate number them)."""
    return os.environ.get("RANK", "0") == "0"
