"""`vision-peft train`: carry out a recipe in a run folder."""

import argparse
import time
from pathlib import Path

import yaml

from peft_runs.durable import write_text
from peft_runs.errors import UsageError
from peft_runs.find import find_recipe
from peft_runs.read import load_file, read_recipe


def train_command(arguments: list[str]) -> None:
    from vision_peft.tasks import Classification

    parser = argparse.ArgumentParser(prog="vision-peft train", allow_abbrev=False)
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action="store_true")
    options, rest = parser.parse_known_args(arguments)
    tasks = {"classification": Classification}
    recipe = read_recipe(load_file(find_recipe(options.recipe)), rest, tasks)
    folder = options.out or Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    if (folder / "metrics.jsonl").exists() and not options.resume:
        raise UsageError(f"{folder} already holds a run: add --resume to go on with it, or choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "recipe.yaml", yaml.safe_dump(recipe.as_dict(), sort_keys=False))
    from peft_runs.train import train

    train(recipe, tasks[recipe.task], folder, options.resume)
