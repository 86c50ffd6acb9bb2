"""Judge a model on a task's test part, over all processes."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, Dataset

from peft_runs.order import TestOrder
from peft_runs.progress import RunProgress
from peft_runs.recipe import RunSpec
from peft_runs.task import Task

BATCH_SIZE = 256


def to_device(batch: dict[str, Any], accelerator: Accelerator, channels_last: bool) -> dict[str, Any]:
    """The batch on the process's device; pictures `[N, C, H, W]` in the model's memory format."""
    moved = {name: value.to(accelerator.device, non_blocking=True) for name, value in batch.items()}
    if channels_last:
        shaped = {name: value for name, value in moved.items() if value.ndim == 4}
        moved |= {name: value.contiguous(memory_format=torch.channels_last) for name, value in shaped.items()}
    return moved


def evaluate(
    task: Task,
    model: nn.Module,
    data: Dataset,
    accelerator: Accelerator,
    progress: RunProgress,
    run: RunSpec,
) -> dict[str, float]:
    """The task's figures for `model`, which is left in the mode it was in."""
    was_training = model.training
    model.eval()
    order = TestOrder(len(data), BATCH_SIZE, accelerator.process_index, accelerator.num_processes)  # type: ignore[arg-type]
    loader = DataLoader(data, batch_sampler=order, num_workers=run.workers)

    def batches():
        for done, batch in enumerate(loader):
            progress.show("evaluate", done, len(order))
            yield to_device(batch, accelerator, run.channels_last)

    with torch.no_grad(), accelerator.autocast():
        sums = task.evaluate(model, batches())
    names = sorted(sums)
    packed = torch.stack([sums[name].to(accelerator.device) for name in names])
    totals = accelerator.reduce(packed, reduction="sum")
    model.train(was_training)
    return task.figures(dict(zip(names, totals, strict=True)))  # type: ignore[arg-type]
