"""What a finished run has saved, judged from the disk: its figures again, its predictions, and itself merged.

`examined.json` is written last of all files of a compared run.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset

from peft_runs.adapted import load_adapted
from peft_runs.compare_samples import draw_samples
from peft_runs.durable import write_json
from peft_runs.errors import RunError
from peft_runs.evaluate import evaluate
from peft_runs.families import Family
from peft_runs.find import load_recipe
from peft_runs.order import seed_generators
from peft_runs.progress import RunProgress
from peft_runs.read import read_recipe
from peft_runs.recipe import Recipe
from peft_runs.run_folder import RunFolder
from peft_runs.start import start_accelerator
from peft_runs.task import Task

NAME = "examined.json"
# The same file through the same code gives the same loss on a CPU; a GPU may sum in another order.
RELOADED_TOLERANCE = 1e-3


class Recorder(nn.Module):
    """Keeps every output of a model, float32 on the CPU."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.outputs: list[Tensor] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.model(*args, **kwargs)
        tensor = output if isinstance(output, Tensor) else output[0]  # diffusers' models wrap theirs
        self.outputs.append(tensor.detach().float().cpu())
        return output

    def taken(self) -> Tensor:
        """All outputs so far in one tensor, `[samples, ...]`."""
        return torch.cat(self.outputs)


def examine(family: Family, folder: RunFolder) -> dict[str, Any]:
    """Reload the adapter, judge it again, merge it, and write what was found beside the result.

    Raises:
        RunError: the saved adapter does not give the trained model's figures back.
    """
    tasks = family.tasks()
    recipe = read_recipe(load_recipe(folder.recipe), [], tasks)
    accelerator = start_accelerator(recipe.run)
    seed_generators(recipe.run.seed)  # a model without pretrained weights starts as it did in training
    task = tasks[recipe.task](recipe.model, recipe.data, recipe.run.seed)
    if hasattr(task, "use_folder"):
        task.use_folder(folder.path)  # type: ignore[attr-defined]
    model = load_adapted(task.build_model(), folder.adapter).to(accelerator.device)
    if recipe.run.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    data = task.test_data(model)
    figures, outputs = _judge(task, model, data, accelerator, recipe)
    found: dict[str, Any] = {
        "figures": figures,
        "samples": len(data),  # type: ignore[arg-type]
        "reloaded_difference": _compare(figures, folder.read_result()),
        "predictions": outputs.argmax(-1).tolist() if outputs.ndim == 2 else None,
    }
    draw_samples(task, model, folder)
    try:
        merged = model.merge_and_unload()  # type: ignore[operator]
    except (NotImplementedError, ValueError) as error:
        found |= {"merged_difference": None, "merged_reason": " ".join(str(error).split())}
    else:
        _, after = _judge(task, merged, data, accelerator, recipe)
        found |= {"merged_difference": float((after - outputs).abs().max()), "merged_reason": None}
    write_json(folder.path / NAME, found)
    return found


def _judge(
    task: Task, model: nn.Module, data: Dataset, accelerator: Accelerator, recipe: Recipe
) -> tuple[dict[str, float], Tensor]:
    recorder = Recorder(model)
    with RunProgress(shown=False) as progress:
        figures = evaluate(task, recorder, data, accelerator, progress, recipe.run)
    return figures, recorder.taken()


def _compare(figures: Mapping[str, float], result: Mapping[str, Any]) -> float:
    """The largest difference between the figures of the reloaded and of the trained model."""
    differences = {name: abs(value - result[name]) for name, value in figures.items()}
    worst = max(differences, key=lambda name: differences[name])
    if not differences[worst] <= RELOADED_TOLERANCE * max(1.0, abs(result[worst])):
        raise RunError(
            f"the saved adapter does not give the trained model's figures back: {worst} is {figures[worst]:.6g} after "
            f"reloading, expected {result[worst]:.6g}"
        )
    return differences[worst]


def read_examined(folder: RunFolder) -> dict[str, Any] | None:
    """What `examine` found, if it is finished."""
    path = folder.path / NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
