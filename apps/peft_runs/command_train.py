"""`vision-peft train`: carry out a recipe in a run folder, or go on with a run that was stopped."""

import argparse
import os
import time
from pathlib import Path

from peft_runs.errors import UsageError
from peft_runs.families import Family
from peft_runs.find import load_recipe
from peft_runs.read import help_text, read_recipe
from peft_runs.run_folder import RunFolder, first_process

USAGE = """{program} train --recipe NAME_OR_FILE [--out FOLDER] [--section.field VALUE ...]
       {program} train --resume --out FOLDER

  --recipe   a recipe's name or a YAML file
  --out      the run's folder (default: runs/<time>)
  --resume   go on with the run in --out from its last checkpoint; its recipe is read from there"""


def run(family: Family, words: list[str]) -> None:
    """Read the recipe, train, and say where the result lies."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--recipe")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("-h", "--help", action="store_true")
    try:
        options, rest = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise UsageError(str(error)) from None
    tasks = family.tasks()
    if options.help:
        data = load_recipe(options.recipe) if options.recipe else {}
        print(help_text(data, rest, tasks, USAGE.format(program=family.program)))
        return
    if options.resume:
        if options.out is None or options.recipe is not None:
            raise UsageError("--resume goes with --out FOLDER and without --recipe: the run's own recipe is used")
        folder = RunFolder(options.out)
        recipe = folder.reopen(rest, tasks)
        if folder.result.exists():
            print(f"the run in {folder.path} is finished: {summary(folder)}")
            return
    else:
        if options.recipe is None:
            raise UsageError(f"no recipe is given: {family.program} train --recipe NAME_OR_FILE")
        recipe = read_recipe(load_recipe(options.recipe), rest, tasks)
        folder = RunFolder(options.out or default_folder())
        if first_process():
            folder.begin(recipe)
    from peft_runs.train import train

    train(recipe, tasks[recipe.task], folder, options.resume)
    if first_process():
        print(f"done: {folder.path}: {summary(folder)}")


def default_folder() -> Path:
    """A new folder named by the time.

    Raises:
        UsageError: several processes, which could each read another time.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("several processes need a folder in common: add --out FOLDER")
    return Path("runs") / time.strftime("%Y%m%d-%H%M%S")


def summary(folder: RunFolder) -> str:
    """The figures a person looks for first."""
    result = folder.read_result()
    names = (
        "accuracy",
        "explained",
        "loss",
        "trainable_parameters",
        "step_seconds_median",
        "peak_bytes",
        "adapter_bytes",
    )
    return ", ".join(
        f"{name.replace('_', ' ')} {result[name]:.4g}"
        if isinstance(result[name], float)
        else f"{name} {result[name]:,}"
        for name in names
        if result.get(name) is not None
    )
