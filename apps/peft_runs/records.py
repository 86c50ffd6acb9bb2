"""What a run writes while it goes on: lines of metrics, pictures of its progress, and at the end its page."""

from typing import Any

from accelerate import Accelerator
from torch import nn

from peft_runs.attach import training_mode
from peft_runs.checkpoint import clear_leftovers
from peft_runs.metrics import Metrics
from peft_runs.progress import RunProgress
from peft_runs.recipe import Recipe
from peft_runs.run_folder import RunFolder
from peft_runs.run_samples import draw_samples
from peft_runs.selection import draw_selection
from peft_runs.task import Task


class Records:
    """The files of one run; of several processes the first one writes.

    Attributes:
        metrics: the open file, in the first process.
    """

    def __init__(self, recipe: Recipe, task: Task, accelerator: Accelerator, folder: RunFolder, progress: RunProgress):
        self.recipe, self.task, self.accelerator = recipe, task, accelerator
        self.folder, self.progress = folder, progress
        self.metrics: Metrics | None = None

    def open(self, position: int) -> None:
        """Begin, or go on after `position` bytes of metrics."""
        if self.accelerator.is_main_process:
            clear_leftovers(self.folder.checkpoints)
            self.metrics = Metrics(self.folder.metrics, position)
        if self.recipe.run.tracker:
            self.accelerator.init_trackers(self.folder.path.name)

    def add(self, kind: str, **values: Any) -> None:
        """One line of metrics.jsonl, and the tracker's."""
        if self.metrics:
            self.metrics.add(kind, **values)
        if self.recipe.run.tracker:
            numbers = {f"{kind}/{name}": value for name, value in values.items() if name not in ("step", "epoch")}
            self.accelerator.log(numbers, step=values["step"])

    def draw_samples(self, model: nn.Module, step: int) -> None:
        """The task's picture of how far the training is after `step` steps, if it has one."""
        if hasattr(self.task, "draw") and self.accelerator.is_main_process:
            draw_samples(self.task, model, self.folder, step, self.accelerator)
            training_mode(model, self.recipe.method.name is not None)

    def draw_selection(self, model: nn.Module) -> None:
        """Draw what the method chose to train, if it chose; a picture that fails does not spoil the run."""
        try:
            name = getattr(self.recipe.model, "name", "the model")
            draw_selection(self.folder, model, f"What {self.recipe.method.name} trains in {name}")
        except ValueError as error:
            self.progress.say(f"warning: no picture of what was chosen to train: {error}")

    def describe(self, result: dict[str, Any]) -> None:
        """Write what the task leaves beside the adapter, and, if it says how its result is used, the page and card."""
        if hasattr(self.task, "leave"):
            self.task.leave(self.folder.adapter)  # type: ignore[attr-defined]
        if hasattr(self.task, "usage"):
            from peft_runs.run_page import write_page

            write_page(self.folder, self.recipe, self.task, result)
