"""Exact checkpoints: everything that changes while training, as safetensors and JSON, whole or absent.

`checkpoint/step-00000120/` holds
    model.safetensors       trainable tensors and all buffers
    optimizer.safetensors   the optimiser's tensors, `<parameter's position>.<name>`
    method.safetensors      tensors that a method keeps beside its parameters, if it does (SNELLA's importances)
    state.json              step, length of metrics.jsonl, the optimiser's numbers, what else the run must remember

There are no generator states: each step seeds the generators from (seed, step, process), see `order.py`.
"""

import json
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from peft_runs.durable import ASIDE, whole_folder, write_json
from peft_runs.errors import RunError

FORMAT = 1


class Stateful(Protocol):
    """What a method keeps of a run beside its parameters: tensors and plain data, by name."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError where the state does not suit."""
        ...


@dataclass
class State:
    """Where a run stands.

    Attributes:
        step: optimiser steps done.
        metrics_bytes: length of metrics.jsonl at this step.
        scaler: float16's loss scale.
        peak_bytes: the measured peak of a step above the loaded model.
    """

    step: int = 0
    metrics_bytes: int = 0
    scaler: dict[str, Any] | None = None
    peak_bytes: int | None = None


def changing_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters and buffers by name; a tensor known by two names is kept under the first."""
    tensors = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {**tensors, **dict(model.named_buffers())}


def save_checkpoint(
    folder: Path, state: State, model: nn.Module, optimizer: torch.optim.Optimizer, kept: Stateful | None = None
) -> Path:
    """Write the checkpoint of `state.step` below `folder`, then delete the older ones."""
    target = folder / f"step-{state.step:08d}"
    beside = {} if kept is None else kept.state_dict()
    plain = {name: value for name, value in beside.items() if not isinstance(value, Tensor)}
    moments = optimizer.state_dict()
    tensors, numbers = {}, {}
    for position, values in moments["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{position}.{name}"] = value.detach().cpu().contiguous()
            else:
                numbers[f"{position}.{name}"] = value
    with whole_folder(target) as aside:
        changing = {name: tensor.detach().cpu().contiguous() for name, tensor in changing_tensors(model).items()}
        save_file(changing, aside / "model.safetensors", {"step": str(state.step)})
        save_file(tensors, aside / "optimizer.safetensors", {"step": str(state.step)})
        if kept is not None:
            own = {name: value.cpu().contiguous() for name, value in beside.items() if isinstance(value, Tensor)}
            save_file(own, aside / "method.safetensors", {"step": str(state.step)})
        groups = [{key: value for key, value in group.items() if key != "params"} for group in moments["param_groups"]]
        record = {"format": FORMAT, **vars(state), "optimizer": {"state": numbers, "groups": groups}, "method": plain}
        write_json(aside / "state.json", record)
    for old in folder.glob("step-*"):
        if old != target:
            shutil.rmtree(old)
    return target


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint."""
    found = sorted(path for path in folder.glob("step-*") if (path / "state.json").is_file())
    return found[-1] if found else None


def clear_leftovers(folder: Path) -> None:
    """Remove what an interrupted write has left."""
    for leftover in folder.glob(ASIDE + "*"):
        shutil.rmtree(leftover, ignore_errors=True)


def load_checkpoint(
    checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer, kept: Stateful | None = None
) -> State:
    """Put model and optimiser, and what the method keeps, back into the saved state.

    Raises:
        RunError: a file is damaged or belongs to another model; nothing was changed then.
    """
    try:
        record = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        saved = load_file(checkpoint / "model.safetensors")
        moments = load_file(checkpoint / "optimizer.safetensors")
        beside = load_file(checkpoint / "method.safetensors") if kept is not None else {}
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(f"the checkpoint {checkpoint} is damaged: {error}") from None
    if record.get("format") != FORMAT:
        raise RunError(f"the checkpoint {checkpoint} has format {record.get('format')!r}, expected {FORMAT}")
    expected = changing_tensors(model)
    for name in sorted(set(expected) ^ set(saved)):
        where = "the checkpoint but not in the model" if name in saved else "the model but not in the checkpoint"
        raise RunError(f"the checkpoint {checkpoint} is of another model: {name!r} is in {where}")
    for name, tensor in expected.items():
        if tensor.shape != saved[name].shape:
            raise RunError(
                f"the checkpoint {checkpoint} is of another model: {name!r} has shape {tuple(saved[name].shape)}, "
                f"expected {tuple(tensor.shape)}"
            )
    if kept is not None:
        try:
            kept.load_state_dict({**beside, **record["method"]})
        except ValueError as error:
            raise RunError(f"the checkpoint {checkpoint} is of another run: {error}") from None
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(saved[name])
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*moments.items(), *record["optimizer"]["state"].items()]:
        position, _, name = key.partition(".")
        state.setdefault(int(position), {})[name] = value
    groups = [
        {**group, "params": current["params"]}
        for group, current in zip(record["optimizer"]["groups"], optimizer.state_dict()["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    return State(**{entry.name: record[entry.name] for entry in fields(State)})
