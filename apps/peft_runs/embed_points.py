"""Make a pretrained encoder of clouds one that the package carries: `python -m peft_runs.embed_points RUN FOLDER`.

RUN is the finished run of `configs/pretrain/point_mini.yaml`, FOLDER `vision_peft/assets/point_mini`. Written are the
encoder's weights in float16, without the decoder that taught it, what was measured with exactly these, and the card.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from peft_runs.adapted import read_safetensors
from peft_runs.durable import whole_folder
from peft_runs.embed import facts, main
from peft_runs.evaluate import evaluate
from peft_runs.families import VISION
from peft_runs.find import load_recipe
from peft_runs.progress import RunProgress
from peft_runs.read import read_recipe
from peft_runs.run_folder import RunFolder
from vision_peft import load_point_checkpoint

ENCODER = "MAE_encoder."
PROBE, SEEDS = "scans", (0, 1, 2)
CARD = """\
---
license: apache-2.0
library_name: timm
tags: [point-cloud, timm]
---
# {name}

A point transformer of Point-MAE's architecture (width 96, 4 blocks, 64 patches of 16 points), pretrained without labels
by masked modelling: the embedded model of clouds that this project's tests, examples and comparisons adapt.

`timm.create_model("{name}", pretrained=True, num_classes=N)` loads it, after `import vision_peft`, without a network.
The head starts anew, and so does the class token (the same in every model), as after any Point-MAE pretraining.

| | |
|---|---|
| Rebuilding 60 % of the patches | **{loss:.5f}** ({decibels:.2f} dB), Chamfer, on {samples:,} unseen surfaces |
| Linear probe on `scans` | **{probe_pretrained:.1f} %** of {probe_test:,} clouds of {probe_classes} classes |
| The same, not pretrained | {probe_untrained:.1f} ± {probe_untrained_std:.1f} % (three seeds) |
| Measured with | this file: float16 weights, computed in float32; the decoder of the run |
| Trained on | {train_size:,} clouds of {points:,} points of {families} generated families of surfaces |
| Recipe | `configs/pretrain/{name}.yaml`, through this project's own training loop |
| Training | {epochs} epochs, {steps:,} steps of {batch_size} clouds, {precision} |
| Time | {seconds_per_epoch:.0f} s an epoch on {device} |
| Parameters | {parameters:,} in the encoder, without class token and head |
| File | {bytes:,} bytes, float16 safetensors |
| Date | {date} |

Families are spheres, tori, screws, saddles and the like, deformed, cut and noisy. The probe is a logistic regression
on the frozen model's pooled features of {probe_train:,} training clouds. Clouds of `scans` are one-sided views of
generated objects with ground, walls and occlusion. What adapting the model gives, and what the same model gives from
nothing, stands in the project's README.

Density matters: it was trained on clouds of {points:,} points in the unit sphere, and patches of 16 points of a denser
or sparser cloud are other patches. It has seen nothing but generated surfaces, no real scan.

To make it again:

    vision-peft train --recipe {name} --out runs/{name}
    python -m peft_runs.embed_points runs/{name} vision_peft/assets/{name} --device "..."
"""


def embed(run: RunFolder, target: Path, device: str) -> dict[str, Any]:
    """Write weights, measurement and card; `device` is told in the card."""
    tasks = VISION.tasks()
    recipe = read_recipe(load_recipe(run.recipe), ["--run.precision", "no"], tasks)
    task: Any = tasks[recipe.task](recipe.model, recipe.data, recipe.run.seed)
    model = task.build_model()
    tensors = read_safetensors(run.adapter / "model.safetensors")
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    model.load_state_dict(halves)
    encoder = {name.removeprefix(ENCODER): t for name, t in halves.items() if name.startswith(ENCODER)}
    accelerator = Accelerator()
    with RunProgress() as progress, whole_folder(target) as aside:
        save_file(encoder, aside / "model.safetensors", {"format": "pt"})
        data = task.test_data(model)
        figures = evaluate(task, model.to(accelerator.device), data, accelerator, progress, recipe.run)
        measured = {
            **figures,
            **probe(target.name, halves, progress),
            "samples": len(data),
            **facts(run, recipe, device),
        }
        measured["parameters"] = sum(parameter.numel() for parameter in model.MAE_encoder.parameters())
        measured["bytes"] = (aside / "model.safetensors").stat().st_size
        measured |= {"train_size": len(task.train_clouds.labels), "points": recipe.data.points}
        measured["families"] = len(task.train_clouds.classes)
        (aside / "measured.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
        (aside / "README.md").write_text(CARD.format(name=target.name, **measured), encoding="utf-8")
    return measured


def probe(name: str, weights: dict[str, Tensor], progress: RunProgress) -> dict[str, Any]:
    """Accuracies in percent of a logistic regression on frozen features of `scans`, pretrained and not."""
    tasks = VISION.tasks()
    recipe = read_recipe(load_recipe(PROBE), ["--run.precision", "no"], tasks)
    task: Any = tasks[recipe.task](recipe.model, recipe.data, recipe.run.seed)
    sets = [task.plain_training_data(None), task.test_data(None)]
    parts = [torch.stack([data[0, index]["points"] for index in range(len(data))]) for data in sets]
    labels = [np.asarray(data.clouds.labels) for data in sets]
    measured: dict[str, Any] = {"probe_train": len(parts[0]), "probe_test": len(parts[1])}
    measured["probe_classes"] = len(task.classes)
    measured["probe_pretrained"] = _accuracy(name, weights, parts, labels, 0)
    untrained = []
    for seed in SEEDS:
        progress.show("probe the untrained model", seed, len(SEEDS))
        untrained.append(_accuracy(name, None, parts, labels, seed))
    measured |= {"probe_untrained": float(np.mean(untrained)), "probe_untrained_std": float(np.std(untrained, ddof=1))}
    return measured


@torch.no_grad()
def _accuracy(
    name: str, weights: dict[str, Tensor] | None, parts: list[Tensor], labels: list[np.ndarray], seed: int
) -> float:
    """Percent of the second part's clouds, by a logistic regression on pooled features of the first."""
    torch.manual_seed(seed)
    model: Any = timm.create_model(name, num_classes=0).eval()
    if weights is not None:
        load_point_checkpoint(model, weights)
    pooled = [torch.cat([model(batch) for batch in points.split(50)]).numpy() for points in parts]
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(pooled[0], labels[0])
    return 100 * float(fitted.score(pooled[1], labels[1]))


if __name__ == "__main__":
    main("peft_runs.embed_points", __doc__, embed)
