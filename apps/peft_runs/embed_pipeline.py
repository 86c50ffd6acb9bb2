"""Make a trained diffusion model one that the package carries: `python -m peft_runs.embed_pipeline RUN FOLDER`.

RUN is the finished run of a recipe of `configs/pretrain`, FOLDER the pipeline's folder below `diffusion_peft/assets`.
A run of `mini_vae` leaves the parts `vae` and `tokenizer` there, which the others start from; one of `mini_sd` or
`mini_dit` the whole pipeline, in float16. With `--checkpoint` a run that is not finished is taken as it stands.
"""

import argparse
from pathlib import Path
from typing import Any

from torch import nn

from peft_runs.adapted import load_adapted, read_safetensors
from peft_runs.checkpoint import latest_checkpoint
from peft_runs.durable import whole_folder
from peft_runs.errors import UsageError
from peft_runs.families import DIFFUSION
from peft_runs.find import load_recipe
from peft_runs.progress import RunProgress
from peft_runs.read import read_recipe
from peft_runs.run_folder import RunFolder


def embed(run: RunFolder, target: Path, checkpoint: bool = False) -> None:
    """Write the pipeline, or its parts, into `target`.

    Raises:
        UsageError: the run is not finished, or has no checkpoint.
    """
    tasks = DIFFUSION.tasks()
    recipe = read_recipe(load_recipe(run.recipe), [], tasks)
    with RunProgress() as progress:
        task: Any = tasks[recipe.task](recipe.model, recipe.data, recipe.run.seed, progress.show)
        model = trained(task.build_model(), run, checkpoint).eval()
        with whole_folder(target) as aside:
            task.write(model, aside)


def trained(model: nn.Module, run: RunFolder, checkpoint: bool) -> nn.Module:
    """The model with the run's final weights, or those of its last checkpoint."""
    if not checkpoint:
        run.read_result()
        return load_adapted(model, run.adapter)
    found = latest_checkpoint(run.checkpoints)
    if found is None:
        raise UsageError(f"{run.path} holds no checkpoint")
    tensors = read_safetensors(found / "model.safetensors")  # also buffers that are no part of a model's state
    model.load_state_dict({name: tensors[name] for name in model.state_dict()})
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m peft_runs.embed_pipeline", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", action="store_true", help="take the last checkpoint of an unfinished run")
    options = parser.parse_args()
    embed(RunFolder(options.run), options.folder, options.checkpoint)
