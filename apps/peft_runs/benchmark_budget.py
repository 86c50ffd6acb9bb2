"""Methods at the same budget: the setting of each whose number of trained parameters comes nearest to it."""

import re
from collections.abc import Callable
from dataclasses import replace

import torch

from peft_kernels.budget import match_budget
from peft_runs.attach import attach, trainable
from peft_runs.benchmark_recipe import BenchmarkMethod
from peft_runs.errors import UsageError
from peft_runs.find import laid_over
from peft_runs.recipe import Recipe
from peft_runs.task import Task

HIGHEST = 64
UNITS = {"": 1, "k": 10**3, "m": 10**6}


def read_budget(text: str) -> int:
    """`0.02M`, `20k` or `20000`: trained parameters without the head.

    Raises:
        UsageError: it is none of these.
    """
    found = re.fullmatch(r"(\d+\.?\d*)([km]?)", text.strip().lower())
    budget = round(float(found[1]) * UNITS[found[2]]) if found else 0
    if budget < 1:
        raise UsageError(f"--budget must be a number of parameters such as 20000, 20k or 0.02M, found {text!r}")
    return budget


def at_budget(
    method: BenchmarkMethod, budget: int, recipe_of: Callable[[BenchmarkMethod], Recipe], task_type: type[Task]
) -> BenchmarkMethod:
    """The method with its `scaled` fields set; as it is, where it has none."""
    if not method.scaled:
        return method

    def at(setting: int) -> BenchmarkMethod:
        fields = dict.fromkeys(method.scaled, setting * method.step)
        return replace(method, sections=laid_over(method.sections, {"method": fields}))

    def count(setting: int) -> int:
        return trained_without_head(recipe_of(at(setting)), task_type)

    searched = [name for name in method.scaled if f"method.{name}" in method.grid]
    if searched:
        raise UsageError(f"--budget sets method.{searched[0]}, which the recipe searches")
    return at(match_budget(count, budget, 1, HIGHEST // method.step))


def trained_without_head(recipe: Recipe, task_type: type[Task]) -> int:
    """Trained parameters without the head, from a model without values."""
    task = task_type(replace(recipe.model, pretrained=False), recipe.data, recipe.run.seed)
    with torch.device("meta"):
        model = task.build_model()
        adapted = attach(model, recipe.method)
    return trainable(adapted, task.head(model))["trainable_parameters_without_head"]
