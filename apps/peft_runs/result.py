"""What a finished run leaves: the adapter (or the model), and `result.json`."""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from peft_runs.durable import whole_folder, write_json
from peft_runs.metrics import read_metrics
from peft_runs.recipe import Recipe


def write_result(folder: Path, recipe: Recipe, model: nn.Module, result: dict[str, Any]) -> dict[str, Any]:
    """Save what was trained, complete the result with step times and sizes, and write `result.json` last."""
    with whole_folder(folder / "adapter") as aside:
        if recipe.method.name is None:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
            save_file(tensors, aside / "model.safetensors", {"format": "pt", "architecture": recipe.model.name})
        else:
            model.save_pretrained(aside)  # type: ignore[operator]
    files = [path for path in (folder / "adapter").rglob("*.safetensors")]
    seconds = sorted(line["seconds"] for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "step")
    result = {
        "method": recipe.method.name,
        **result,
        "step_seconds_mean": sum(seconds) / len(seconds),
        "step_seconds_median": seconds[len(seconds) // 2],
        "adapter_bytes": sum(path.stat().st_size for path in files),
    }
    write_json(folder / "result.json", result)
    return result
