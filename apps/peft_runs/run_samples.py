"""Pictures drawn in the course of a training, in the run's folder: `samples/step-<steps done>.png`."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from peft_runs.run_folder import RunFolder
from peft_runs.whole_file import whole_file


def draw_samples(task: Any, model: nn.Module, folder: RunFolder, step: int, accelerator: Accelerator) -> None:
    """The task's picture of the model, which is left in evaluation mode, after `step` steps."""
    model.to(accelerator.device).eval()
    with torch.no_grad(), accelerator.autocast():
        picture = task.draw(model)
    if picture is not None:
        folder.samples.mkdir(exist_ok=True)
        with whole_file(folder.samples / f"step-{step:08d}.png") as aside:
            picture.save(aside)
