"""`vision-peft evaluate`: judge a finished run again, or a recipe's model as it is before any training."""

import argparse
import json
from pathlib import Path

from peft_runs.adapted import load_adapted
from peft_runs.errors import UsageError
from peft_runs.families import Family
from peft_runs.find import load_recipe
from peft_runs.read import read_recipe
from peft_runs.run_folder import RunFolder


def run(family: Family, words: list[str]) -> None:
    """Print the task's figures as one line of JSON.

    Raises:
        UsageError: neither or both of a run and a recipe are given, or the run is not finished.
    """
    parser = argparse.ArgumentParser(
        usage=f"{family.program} evaluate RUN_FOLDER | --recipe NAME_OR_FILE [--section.field VALUE ...]",
        allow_abbrev=False,
        epilog="Further --section.field VALUE change the recipe, for example --data.root FOLDER --data.test_split val.",
    )
    parser.add_argument("--recipe", help="without a run: judge this recipe's model as it is")
    folder = RunFolder(Path(words[0])) if words and not words[0].startswith("-") else None
    options, rest = parser.parse_known_args(words[1:] if folder else words)
    if (folder is None) == (options.recipe is None):
        raise UsageError("give either the folder of a finished run or --recipe NAME_OR_FILE")
    if folder:
        folder.read_result()
    tasks = family.tasks()
    recipe = read_recipe(load_recipe(folder.recipe if folder else options.recipe), rest, tasks)

    from peft_runs.evaluate import evaluate
    from peft_runs.order import seed_generators
    from peft_runs.progress import RunProgress
    from peft_runs.start import start_accelerator

    accelerator = start_accelerator(recipe.run)
    with RunProgress(shown=accelerator.is_main_process) as progress:
        seed_generators(recipe.run.seed)  # a base without pretrained weights is the same again
        task = tasks[recipe.task](recipe.model, recipe.data, recipe.run.seed, progress.show)
        if folder and hasattr(task, "use_folder"):
            task.use_folder(folder.path)  # type: ignore[attr-defined]
        model = task.build_model()
        if folder:
            model = load_adapted(model, folder.adapter)
        data = task.test_data(model)
        figures = evaluate(task, model.to(accelerator.device), data, accelerator, progress, recipe.run)
    if accelerator.is_main_process:
        print(json.dumps({**figures, "samples": len(data)}))  # type: ignore[arg-type]
