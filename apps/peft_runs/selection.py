"""What a run's method chose to train, drawn into the run's folder: `selection.png` and `allocation.png`."""

import re
from collections.abc import Iterator
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from peft_kernels.budget import Plan
from peft_runs.metrics import read_metrics
from peft_runs.run_folder import RunFolder

SELECTION, ALLOCATION = "selection.png", "allocation.png"


def draw_selection(folder: RunFolder, model: nn.Module, title: str) -> None:
    """Draw the plan in the config of the run's adapter, or the budget that the run divided, if there is one."""
    history = [line for line in read_metrics(folder.metrics) if "sparsity" in line]
    plan = Plan(sparsity=history[-1]["sparsity"]) if history else _plan(model)
    if plan is None:
        return
    from peft_runs.selection_figure import draw_allocation, draw_plan

    draw_plan(plan, plan_sizes(model, plan), folder.path / SELECTION, title)
    if history:
        draw_allocation(history, folder.path / ALLOCATION, title)


def _plan(model: nn.Module) -> Plan | None:
    config = getattr(model, "active_peft_config", None)
    found = getattr(config, "plan", None)
    plan = Plan.read(found) if found else None
    return plan if plan is not None and plan.as_dict() else None


def plan_sizes(model: nn.Module, plan: Plan) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of the model under its adapters, by the names that the plan gives or would give them.

    A matrix goes by its module's name unless the plan names the tensor, or row blocks of it; so do convolutions.
    """
    named = {*plan.ranks, *plan.sparsity, *plan.entries, *plan.full, *plan.layers}
    kinds = {_kind(name) for name in named}  # a block that was passed over goes by the names of the others
    base: Any = model
    if hasattr(model, "get_base_model"):
        base = model.get_base_model()  # type: ignore[operator]
    sizes: dict[str, tuple[int, ...]] = {}
    for key, module in _plain_modules(base):
        for name, parameter in module.named_parameters(recurse=False):
            shape, tensor = tuple(parameter.shape), f"{key}.{name}".lstrip(".")
            forms = ("", ".weight") if name == "weight" else (f".{name}",)
            ends = [end for end in forms if any(_kind(f"{key}.{block}{end}") in kinds for block in "qkv")]
            if ends:
                sizes |= {f"{key}.{block}{ends[0]}": (shape[0] // 3, *shape[1:]) for block in "qkv"}
            elif name == "weight" and _kind(tensor) not in kinds and (len(shape) > 1 or _kind(key) in kinds):
                sizes[key] = shape
            else:
                sizes[tensor] = shape
    return sizes


def _kind(name: str) -> str:
    return re.sub(r"\b\d+\b", "#", name)


def _plain_modules(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """All modules under the adapters by their plain names; what is trained anew beside them is left out."""
    if isinstance(module, AuxiliaryTrainingWrapper):
        return
    if isinstance(module, BaseTunerLayer):
        if not isinstance(getattr(module, "base_layer", None), nn.Module):
            return  # trained copies of raw parameters
        module = module.get_base_layer()
    yield prefix, module
    for name, child in module.named_children():
        yield from _plain_modules(child, f"{prefix}.{name}".lstrip("."))
