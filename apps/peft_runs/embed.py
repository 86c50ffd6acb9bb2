"""Make a trained model one of those that the package carries: `python -m peft_runs.embed RUN FOLDER`.

RUN is the finished run of a recipe without a method (see `configs/pretrain`), FOLDER the model's folder below
`vision_peft/assets`. Written are the weights in float16, what was measured on exactly this file, and its card.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from peft_runs.adapted import load_adapted, read_safetensors
from peft_runs.durable import whole_folder
from peft_runs.evaluate import evaluate
from peft_runs.families import VISION
from peft_runs.find import load_recipe
from peft_runs.metrics import read_metrics
from peft_runs.progress import RunProgress
from peft_runs.read import read_recipe
from peft_runs.recipe import Recipe
from peft_runs.run_folder import RunFolder

CARD = """\
---
license: apache-2.0
library_name: timm
tags: [image-classification, timm]
---
# {name}

A timm `VisionTransformer` for {size}×{size} pictures: the embedded model that this project's tests, examples and
comparisons adapt. It is small so that a step takes a fraction of a second on two processor cores.

`timm.create_model("{name}", pretrained=True)` loads it, after `import vision_peft`, without a network and also with
another `num_classes`.

| | |
|---|---|
| Test accuracy | **{accuracy:.2f} %** top-1 of {samples:,} test pictures, mean cross-entropy {loss:.4f} |
| Measured on | this file: float16 weights, computed in float32 |
| Trained on | {data} |
| Recipe | `configs/pretrain/{name}.yaml`, through this project's own training loop |
| Training | {epochs} epochs, {steps:,} steps of {batch_size} pictures, {precision} |
| Time | {seconds_per_epoch:.0f} s an epoch on {device} |
| Parameters | {parameters:,} |
| File | {bytes:,} bytes, float16 safetensors |
| Date | {date} |

The classes are, in order: {classes}.

To make it again, with FOLDER holding `cifar10_train.zip` and `cifar10_test.zip` (or `train/<class>/*.jpg` and
`test/<class>/*.jpg`):

    vision-peft train --recipe {name} --data.root FOLDER --out runs/{name}
    python -m peft_runs.embed runs/{name} vision_peft/assets/{name} --device "..."
"""
DATA = "the 50,000 training pictures of CIFAR-10 (Krizhevsky, 2009) and nothing else; no test picture was trained on"


def embed(run: RunFolder, target: Path, device: str) -> dict[str, Any]:
    """Write weights, measurement and card; `device` is told in the card."""
    tasks = VISION.tasks()
    recipe = read_recipe(load_recipe(run.recipe), ["--run.precision", "no"], tasks)
    task: Any = tasks[recipe.task](replace(recipe.model, pretrained=False), recipe.data, recipe.run.seed)
    model = task.build_model()
    with whole_folder(target) as aside:
        tensors = read_safetensors(run.adapter / "model.safetensors")
        halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        save_file(halves, aside / "model.safetensors", {"format": "pt"})
        load_adapted(model, aside)
        if any(not torch.equal(tensor, halves[name].to(tensor)) for name, tensor in model.state_dict().items()):
            raise AssertionError("the model does not hold what the file holds")
        accelerator = Accelerator()
        with RunProgress() as progress:
            data = task.test_data(model)
            figures = evaluate(task, model.to(accelerator.device), data, accelerator, progress, recipe.run)
        measured = {**figures, "samples": len(data), **facts(run, recipe, device)}
        measured["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        measured["bytes"] = (aside / "model.safetensors").stat().st_size
        (aside / "measured.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
        shown = {**measured, "accuracy": 100 * measured["accuracy"]}
        card = CARD.format(
            name=recipe.model.name,
            size=model.pretrained_cfg["input_size"][-1],
            data=DATA,
            classes=", ".join(task.classes),
            **shown,
        )
        (aside / "README.md").write_text(card, encoding="utf-8")
    return measured


def facts(run: RunFolder, recipe: Recipe, device: str) -> dict[str, Any]:
    """How the run was trained. Seconds are those of the steps, without evaluations."""
    recorded = [line for line in read_metrics(run.metrics) if line["kind"] == "step"]
    timed = [line["seconds"] for line in recorded if "seconds" in line]
    trained_as = load_recipe(run.recipe)["run"]["precision"]
    words = {"no": "float32", "bf16": "bfloat16 autocast", "fp16": "float16 autocast"}
    return {
        "epochs": recipe.run.epochs,
        "steps": len(recorded),
        "batch_size": recipe.optim.batch_size,
        "precision": words[trained_as],
        "seconds_per_epoch": sum(timed) / len(timed) * len(recorded) / recipe.run.epochs,
        "device": device,
        "date": time.strftime("%Y-%m-%d", time.gmtime(run.result.stat().st_mtime)),
    }


def main(program: str, description: str | None, made: Callable[[RunFolder, Path, str], dict[str, Any]]) -> None:
    """What `python -m PROGRAM RUN FOLDER --device WORDS` does with ``made``."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=description)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", required=True, help="what it was trained on, in words, for the card")
    options = parser.parse_args()
    print(json.dumps(made(RunFolder(options.run), options.folder, options.device), indent=2))


if __name__ == "__main__":
    main("peft_runs.embed", __doc__, embed)
