"""`vision-peft benchmark`: a benchmark's protocol, from the search on the validation parts to the papers' table."""

import argparse
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from peft_runs.command_compare import shares
from peft_runs.errors import UsageError
from peft_runs.families import Family

if TYPE_CHECKING:
    from peft_runs.benchmark_plan import BenchmarkPlan

USAGE = """{program} benchmark --recipe NAME_OR_FILE [--tasks A B ...] [--methods A B ...] [--seeds N]
                    [--data-root FOLDER] [--out FOLDER] [--jobs N] [--budget N] [--section.field VALUE ...]

  --recipe     a recipe with a section 'benchmark': vtab1k, fgvc, few_shot, or a file
  --tasks      the tasks (default: all of the recipe)
  --methods    the methods (default: all that the recipe lists)
  --seeds      trainings of each method with the settings it chose; with one seed nothing is ranked (default: 3)
  --data-root  where the tasks' data lie
  --out        the benchmark's folder (default: runs/<recipe>)
  --jobs       trainings side by side, which share the cores (default: 1)
  --budget     trained parameters without the head, as 20000, 20k or 0.02M: methods that can come as near as possible

For each task and method the recipe's grid is searched on the validation part with one seed; the best settings are
trained again with every seed on training and validation part, and tested once, after the last epoch. The same command
again goes on where it stopped; more tasks, methods or seeds add to what is there.
--section.field VALUE changes all trainings, for example --run.epochs 5; a field that is set so is not searched."""


def run(family: Family, words: list[str]) -> None:
    """Carry out the benchmark and print its table.

    Raises:
        UsageError: the command line or the recipe is wrong; nothing was begun.
        RunError: a training failed; the others are in the tables.
    """
    options, rest = _parse(words)
    if options.help:
        print(USAGE.format(program=family.program))
        return
    if options.recipe is None:
        raise UsageError(f"no recipe is given: {family.program} benchmark --recipe NAME_OR_FILE")
    from peft_runs.benchmark import Benchmark
    from peft_runs.benchmark_budget import plan_at_budget, read_budget
    from peft_runs.benchmark_table import markdown

    plan = _plan(family, options, rest)
    budget = None if options.budget is None else read_budget(options.budget)
    plan = plan if budget is None else plan_at_budget(plan, budget)
    out = options.out or Path("runs") / Path(options.recipe).stem
    console = Console()
    benchmark = Benchmark(plan, out, console, shlex.join([family.program, "benchmark", *words]), budget)
    try:
        benchmark.carry_out()
    except KeyboardInterrupt:
        console.print("stopped; what is finished is kept. The same command goes on from there", soft_wrap=True)
        raise
    finally:
        if (out / "table.md").is_file():
            console.print(markdown(benchmark.gather()), highlight=False, markup=False, soft_wrap=True)


def _plan(family: Family, options: argparse.Namespace, rest: list[str]) -> "BenchmarkPlan":
    """What is to be done, once everything that can be wrong before the first training is known to be right."""
    from peft_runs.benchmark_plan import BenchmarkPlan
    from peft_runs.benchmark_recipe import read_benchmark
    from peft_runs.find import load_recipe
    from peft_runs.read import split_words

    data, given = load_recipe(options.recipe), dict(split_words(rest))
    for key in ("method.name", "run.seed", "run.threads"):
        if key in given:
            raise UsageError(f"--{key} is set for each training by the benchmark")
    tasks = family.tasks()
    task_type = tasks.get(str(data.get("task")), next(iter(tasks.values())))
    recipe = read_benchmark(Path(options.recipe).stem, data, getattr(task_type, "benchmarks", {}))
    methods = {name: recipe.method(name) for name in options.methods or recipe.methods}
    for name, entry in methods.items():
        methods[name] = replace(entry, grid={key: values for key, values in entry.grid.items() if key not in given})
    names = list(options.tasks or recipe.tasks)
    for name in names:
        recipe.task(name)
    plan = BenchmarkPlan(
        family, recipe, names, methods, range(options.seeds), tuple(rest), options.data_root, *shares(options.jobs)
    )
    for method in methods:
        for cell in plan.searched(names[0], method):
            plan.cell_recipe(cell)
    for task in names:
        read = plan.cell_recipe(plan.first_final(task, next(iter(methods))))
        task_type(read.model, read.data, 0)
    return plan


def _parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--recipe")
    parser.add_argument("--tasks", nargs="+", type=_names)
    parser.add_argument("--methods", nargs="+", type=_names)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--budget")
    parser.add_argument("-h", "--help", action="store_true")
    try:
        options, rest = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise UsageError(str(error)) from None
    for name in ("seeds", "jobs"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name} must be at least 1, found {getattr(options, name)}")
    for name in ("tasks", "methods"):
        listed = [word for part in getattr(options, name) or () for word in part]
        twice = sorted({word for word in listed if listed.count(word) > 1})
        if twice:
            raise UsageError(f"--{name}: {twice[0]!r} is named twice")
        setattr(options, name, listed)
    return options, rest


def _names(word: str) -> list[str]:
    """`A,B` as two."""
    return [name for name in word.split(",") if name]
