"""A tiny comparison of clouds as a finished one lies on the disk, with adapters that were never trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from peft_runs.attach import attach
from peft_runs.durable import write_json
from peft_runs.families import VISION
from peft_runs.find import load_recipe
from peft_runs.order import seed_generators
from peft_runs.read import read_recipe
from peft_runs.run_folder import RunFolder

METHODS = ("linear_probe", "pointgst")
TINY = (
    *("--model.num_groups", "16", "--model.group_size", "8", "--model.pretrained", "false"),
    *("--data.points", "256", "--data.train_size", "15", "--data.test_size", "4"),
)


def comparison(out: Path) -> dict[str, Any]:
    """Write the comparison's folder; the adapted models by method."""
    tasks, models = VISION.tasks(), {}
    for method in METHODS:
        own = ("--method.local_size", "8") if method == "pointgst" else ()
        recipe = read_recipe(load_recipe(f"scans_{method}"), [*TINY, *own], tasks)
        folder = RunFolder(out / method / "seed-0")
        folder.begin(recipe)
        seed_generators(recipe.run.seed)
        task: Any = tasks[recipe.task](recipe.model, recipe.data, recipe.run.seed)
        model: Any = attach(task.build_model(), recipe.method)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(str(folder.adapter), save_embedding_layers=False)
        write_json(folder.path / "examined.json", {})
        models[method] = model.eval()
    return models
