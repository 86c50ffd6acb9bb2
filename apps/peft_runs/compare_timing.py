"""Step times, measured once all training is over: one method after the other, alone on the machine, on one kept batch.

    python -m peft_runs.compare_timing FAMILY FOLDER...          run folders

A step is what the training loop does: forward, backward, clipping and the optimiser, without the loading of data. All
methods are timed in one process with the number of threads that torch chooses, so that they stand on the same ground.
"""

import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from peft_runs.attach import training_mode
from peft_runs.compare_child import FAMILIES, follow_parent
from peft_runs.durable import write_json
from peft_runs.families import Family
from peft_runs.find import load_recipe
from peft_runs.order import TrainingOrder, seed_generators
from peft_runs.progress import RunProgress
from peft_runs.read import read_recipe
from peft_runs.recipe import Recipe
from peft_runs.run_folder import RunFolder
from peft_runs.start import start_accelerator
from peft_runs.train import Training

NAME = "step_times.json"
WARM_UP, STEPS = 2, 10
LONGEST = 30.0  # seconds after which fewer steps have to do


def main(family: Family, folders: list[RunFolder]) -> None:
    """Time every run that has not been, and write its times into its folder."""
    recipes = [_with_all_threads(read_recipe(load_recipe(folder.recipe), [], family.tasks())) for folder in folders]
    accelerator = start_accelerator(recipes[0].run)
    for recipe, folder in zip(recipes, folders, strict=True):
        if read_times(folder) is None:
            write_json(folder.path / NAME, time_steps(family, recipe, accelerator))
            accelerator.free_memory()


def _with_all_threads(recipe: Recipe) -> Recipe:
    return dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, threads=None, tracker=None))


def time_steps(family: Family, recipe: Recipe, accelerator: Accelerator) -> dict[str, Any]:
    """Seconds of each of `STEPS` steps after `WARM_UP` others, of a fresh run of the recipe that is thrown away."""
    seed_generators(recipe.run.seed)
    task = family.tasks()[recipe.task](recipe.model, recipe.data, recipe.run.seed)
    with tempfile.TemporaryDirectory() as nowhere, RunProgress(shown=False) as progress:
        training = Training(recipe, task, accelerator, RunFolder(Path(nowhere)), progress)
        order = TrainingOrder(
            samples=len(training.training_data),  # type: ignore[arg-type]
            batch_size=recipe.optim.batch_size,
            start=0,
            stop=1,
            seed=recipe.run.seed,
            parts=recipe.run.accumulate,
            process=0,
            processes=1,
        )
        batches = list(DataLoader(training.training_data, batch_sampler=order))
        training_mode(training.model, recipe.method.name is not None)
        seconds: list[float] = []
        begun = time.monotonic()
        for step in range(WARM_UP + STEPS):
            before = time.monotonic()
            training.one_step(step, iter(batches), named=False)
            _finish(accelerator.device)
            seconds.append(time.monotonic() - before)
            if step > WARM_UP and time.monotonic() - begun > LONGEST:
                break
    seconds = seconds[WARM_UP:]
    return {
        "median": statistics.median(seconds),
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "device": str(accelerator.device),
    }


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def read_times(folder: RunFolder) -> dict[str, Any] | None:
    """The times of one run, if it was timed."""
    path = folder.path / NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


if __name__ == "__main__":
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    follow_parent()
    main(FAMILIES[sys.argv[1]], [RunFolder(Path(place)) for place in sys.argv[2:]])
