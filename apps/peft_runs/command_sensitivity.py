"""`vision-peft sensitivity`: score a recipe's model on its data, and show where a budget of parameters would go."""

import argparse
from pathlib import Path
from typing import Any

from peft_runs.errors import UsageError
from peft_runs.families import Family
from peft_runs.find import load_recipe
from peft_runs.read import read_recipe

METHOD = "spt"


def run(family: Family, words: list[str]) -> None:
    """Write scores, plan and picture into a folder, and say what the plan holds.

    Raises:
        UsageError: the recipe is of another method, or its values do not fit the model or the data.
    """
    parser = argparse.ArgumentParser(
        usage=f"{family.program} sensitivity --recipe NAME_OR_FILE --out FOLDER [--budget N] [--section.field VALUE]",
        description="Score every weight by the loss's squared gradients and plan a budget of trainable parameters.",
        allow_abbrev=False,
        epilog="The folder gets scores.safetensors (by parameter), plan.json and plan.png (layers × modules). "
        "Any recipe will do with --method.name spt.",
    )
    parser.add_argument("--recipe", required=True, help="a recipe's name or a YAML file")
    parser.add_argument("--budget", type=float, help="trainable parameters, or below 1 a share (default: the recipe's)")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write into")
    options, rest = parser.parse_known_args(words)
    if options.budget is not None:
        rest += ["--method.budget", f"{options.budget:g}"]
    tasks = family.tasks()
    data = load_recipe(options.recipe)
    recipe = read_recipe(data, rest, tasks)
    if recipe.method.name != METHOD:
        raise UsageError(
            f"the recipe trains {recipe.method.name or 'the model itself'}, which needs no plan: "
            f"take a recipe of {METHOD}, or add --method.name {METHOD}"
        )

    from peft_kernels.registry import methods
    from peft_runs.choose import scored_batches
    from peft_runs.order import seed_generators
    from peft_runs.progress import RunProgress
    from peft_runs.start import start_accelerator

    accelerator = start_accelerator(recipe.run)
    with RunProgress(shown=accelerator.is_main_process) as progress:
        seed_generators(recipe.run.seed)
        task = tasks[recipe.task](recipe.model, recipe.data, recipe.run.seed, progress.show)
        model = task.build_model().to(accelerator.device)
        try:
            config: Any = methods()[METHOD].config(model, **recipe.method.fields)
            batches = scored_batches(recipe, task, model, accelerator, progress, config)
            print(write(options.out, config, model, batches, task.loss, recipe.model.name))
        except ValueError as error:
            raise UsageError(str(error)) from error


def write(out: Path, config: Any, model: Any, batches: Any, loss: Any, name: str) -> str:
    """Score, plan, write the three files; the sentence to say."""
    from safetensors.torch import save_file

    from peft_kernels.budget import Plan
    from peft_runs.durable import whole_folder, write_json
    from peft_runs.selection_figure import draw_plan
    from vision_peft.methods.spt.places import places
    from vision_peft.methods.spt.selection import parameters_of, score, with_plan

    scores = score(config, model, batches, loss)
    plan = Plan.read(with_plan(config, model, scores).plan or {})
    known = places(model, config)
    total = parameters_of(plan, known, config, model)
    with whole_folder(out) as aside:
        save_file({key: value.cpu().contiguous() for key, value in scores.items()}, aside / "scores.safetensors")
        write_json(aside / "plan.json", {"budget": config.budget, "parameters": total, "plan": plan.as_dict()})
        sizes = {key: place.shape for key, place in known.items()}
        draw_plan(plan, sizes, aside / "plan.png", f"{name}: {total:,} parameters, {config.structured}")
    return (
        f"{total:,} parameters for a budget of {config.budget:,.6g}: {config.structured} of rank {config.rank} on "
        f"{len(plan.ranks)} matrices, {len(plan.full)} whole vectors, {sum(plan.entries.values()):,} single entries in "
        f"{len(plan.entries)} tensors\nwrote {out / 'plan.json'}, plan.png and scores.safetensors"
    )
