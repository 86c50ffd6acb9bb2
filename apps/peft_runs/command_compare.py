"""`vision-peft compare`: several methods on one task, each in its own process, and what came of it."""

import argparse
from pathlib import Path

from rich.console import Console

from peft_runs.command_train import default_folder
from peft_runs.errors import UsageError
from peft_runs.families import Family

USAGE = """{program} compare --recipe NAME_OR_FILE [--methods A,B,...] [--seeds N] [--jobs N] [--out FOLDER]
                  [--section.field VALUE ...]
       {program} compare --resume --out FOLDER

  --recipe   what all methods share; a method's own recipe is NAME_<method>, if there is one
  --methods  the methods (default: all that have a recipe of their own)
  --seeds    runs of each method; with one seed nothing is ranked (default: 1)
  --jobs     runs side by side (default: 2 on a CPU of two or more cores, else 1)
  --out      the comparison's folder (default: runs/<time>)
  --resume   finish the comparison in --out; what is finished there is kept

--section.field VALUE changes the recipes of all methods, for example --run.epochs 5; with a method before it, that
method's alone: --lora.method.r 4."""


def run(family: Family, words: list[str]) -> None:
    """Carry out the comparison, print its table and write its report.

    Raises:
        UsageError: the command line or a recipe is wrong; nothing was begun.
        RunError: a method failed; the others are in the report.
    """
    options, rest = _parse(family, words)
    if options.help:
        print(USAGE.format(program=family.program))
        return
    from peft_runs.compare import carry_out
    from peft_runs.compare_plan import make_plan, read_plan, read_recipes

    if options.resume:
        if options.out is None or rest or options.recipe or options.methods or options.seeds != 1:
            raise UsageError("--resume goes with --out FOLDER alone: the comparison's own plan is used")
        out = options.out
        plan = read_plan(out)
    else:
        if options.recipe is None:
            raise UsageError(f"no recipe is given: {family.program} compare --recipe NAME_OR_FILE")
        names = None if options.methods is None else _names(options.methods)
        out = options.out or default_folder()
        plan = make_plan(family, options.recipe, names, options.seeds, rest, *shares(options.jobs))
    recipes = read_recipes(plan, family)
    tasks = family.tasks()
    first = next(iter(recipes.values()))
    task = tasks[first.task](first.model, first.data, first.run.seed)
    if not options.resume:
        if out.exists() and any(out.iterdir()):
            raise UsageError(f"{out} is not empty: add --resume to finish a comparison there, or choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        plan.write(out)
    carry_out(plan, out, family, recipes, task, Console())


def _parse(family: Family, words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--recipe")
    parser.add_argument("--methods")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("-h", "--help", action="store_true")
    try:
        options, rest = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise UsageError(str(error)) from None
    for name in ("seeds", "jobs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} must be at least 1, found {value}")
    return options, rest


def _names(listed: str) -> list[str]:
    names = [name.strip() for name in listed.split(",") if name.strip()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise UsageError(f"--methods {twice[0]!r} is named twice" if twice else "--methods names no method: A,B,...")
    return names


def shares(jobs: int | None) -> tuple[int, int | None]:
    """How many runs side by side, and the threads of each: all cores on a CPU, torch's choice on an accelerator."""
    import torch

    from peft_runs.compare_machine import cores

    if torch.accelerator.is_available():
        return jobs or 1, None
    jobs = jobs or min(2, cores())
    return jobs, max(1, cores() // jobs)
