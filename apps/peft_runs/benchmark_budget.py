"""Methods at the same budget: the setting of each whose number of trained parameters comes nearest to it."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from peft_kernels.budget import match_budget
from peft_runs.attach import attach, trainable
from peft_runs.benchmark_plan import BenchmarkPlan
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


def plan_at_budget(plan: BenchmarkPlan, budget: int) -> BenchmarkPlan:
    """The plan with every method at the budget, counted on the first task."""
    tasks = plan.family.tasks()

    def recipe_of(name: str, entry: BenchmarkMethod) -> Recipe:
        alone = replace(plan, methods={name: entry})
        return alone.cell_recipe(alone.first_final(plan.tasks[0], name))

    matched = {}
    for name, entry in plan.methods.items():
        task_type = tasks[recipe_of(name, entry).task]
        matched[name] = at_budget(entry, budget, partial(recipe_of, name), task_type)
    return replace(plan, methods=matched)


def at_budget(
    method: BenchmarkMethod, budget: int, recipe_of: Callable[[BenchmarkMethod], Recipe], task_type: type[Task]
) -> BenchmarkMethod:
    """The method with its `scaled` fields set, which are then not searched; as it is, where it has none."""
    if not method.scaled:
        return method

    def at(setting: int) -> BenchmarkMethod:
        fields = dict.fromkeys(method.scaled, setting * method.step)
        grid = {key: values for key, values in method.grid.items() if key.removeprefix("method.") not in fields}
        return replace(method, sections=laid_over(method.sections, {"method": fields}), grid=grid)

    def count(setting: int) -> int:
        return trained_without_head(recipe_of(at(setting)), task_type)

    return at(match_budget(count, budget, 1, HIGHEST // method.step))


def trained_without_head(recipe: Recipe, task_type: type[Task]) -> int:
    """Trained parameters without the head, from a model without values."""
    task = task_type(replace(recipe.model, pretrained=False), recipe.data, recipe.run.seed)
    with torch.device("meta"):
        model = task.build_model()
        adapted = attach(model, recipe.method)
    return trainable(adapted, task.head(model))["trainable_parameters_without_head"]
