"""What a method decides from data before it is attached: once for a run, and kept with it.

`chosen.json` holds the fields of the method's configuration that the data decided. A resumed run reads them instead of
looking at data again; what else the method found (the places of single entries) lies in the checkpoint's buffers.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from peft import PeftConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from peft_kernels.registry import methods
from peft_runs.durable import write_json
from peft_runs.errors import RunError, UsageError
from peft_runs.evaluate import to_device
from peft_runs.order import TrainingOrder
from peft_runs.progress import RunProgress
from peft_runs.recipe import Recipe
from peft_runs.task import Task


def choose(
    recipe: Recipe,
    task: Task,
    base: nn.Module,
    accelerator: Accelerator,
    progress: RunProgress,
    kept: Path,
    resume: bool,
) -> PeftConfig | None:
    """The method's configuration after it has looked at the training data; ``None`` for methods that do not.

    Raises:
        UsageError: the method refuses the recipe's values for this model or these data.
        RunError: the run goes on, but what was decided at its start is missing.
    """
    method = methods().get(recipe.method.name or "")
    if method is None or method.choose is None:
        return None
    if resume:
        try:
            return method.config(base, **{**recipe.method.fields, **json.loads(kept.read_text(encoding="utf-8"))})
        except (OSError, ValueError) as error:
            raise RunError(f"{kept}, what the run decided at its start, cannot be read: {error}") from None
    asked: Any = method.config(base, **recipe.method.fields)
    batches = scored_batches(recipe, task, base, accelerator, progress, asked)
    base.to(accelerator.device)
    try:
        chosen = method.choose(asked, base, batches, lambda model, batch: task.loss(model, batch))
    except ValueError as error:
        raise UsageError(f"method {method.name!r} cannot choose what to train: {error}") from error
    if accelerator.num_processes > 1:  # all train what the first has chosen
        (chosen,) = broadcast_object_list([chosen])
    if accelerator.is_main_process:
        names = [f.name for f in fields(asked) if getattr(chosen, f.name) != getattr(asked, f.name)]
        write_json(kept, {name: getattr(chosen, name) for name in names})
    return chosen


def scored_batches(
    recipe: Recipe, task: Task, base: nn.Module, accelerator: Accelerator, progress: RunProgress, config: Any
) -> Iterable[dict[str, Tensor]]:
    """Shuffled training batches, not varied where the task offers that; the same in every process.

    Raises:
        UsageError: there are no training samples.
    """
    make = getattr(task, "plain_training_data", task.training_data)
    data: Dataset = make(base)
    samples = len(data)  # type: ignore[arg-type]
    if not samples:
        raise UsageError("there are no training samples to score the model on")
    size, seed = min(config.batch_size, samples), recipe.run.seed
    order = TrainingOrder(samples, size, 0, config.num_batches, seed, parts=1, process=0, processes=1)
    loader = DataLoader(data, batch_sampler=order, generator=torch.Generator().manual_seed(seed))

    def batches() -> Iterator[dict[str, Tensor]]:
        for done, batch in enumerate(loader):
            progress.show("score", done, len(order))
            yield to_device(batch, accelerator, channels_last=False)

    return batches()
