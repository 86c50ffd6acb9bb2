"""What a finished run leaves: the adapter (or the model), and `result.json`."""

from collections.abc import Callable
from statistics import mean, median
from typing import Any

from safetensors.torch import save_file
from torch import nn

from peft_runs.durable import whole_folder, write_json
from peft_runs.metrics import read_metrics
from peft_runs.recipe import Recipe
from peft_runs.run_folder import RunFolder


def write_result(
    folder: RunFolder,
    recipe: Recipe,
    model: nn.Module,
    result: dict[str, Any],
    described: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Save what was trained, complete the result with step times and sizes, and write `result.json` last.

    `described` gets the result before, to leave files beside what was saved.
    """
    with whole_folder(folder.adapter) as aside:
        if recipe.method.name is None:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
            save_file(tensors, aside / "model.safetensors", {"format": "pt"})
        else:
            # Without the flag PEFT asks the hub for the base model's vocabulary.
            model.save_pretrained(aside, save_embedding_layers=False)  # type: ignore[operator]
    seconds = [line["seconds"] for line in read_metrics(folder.metrics) if "seconds" in line]
    result = {
        "method": recipe.method.name,
        **result,
        "step_seconds_mean": mean(seconds) if seconds else None,
        "step_seconds_median": median(seconds) if seconds else None,
        "adapter_bytes": sum(path.stat().st_size for path in folder.adapter.rglob("*.safetensors")),
    }
    if described is not None:
        described(result)
    write_json(folder.result, result)
    return result
