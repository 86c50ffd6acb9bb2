"""What attaching does beside wrapping modules: raw parameters, and taking everything back when it fails half-way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from peft_kernels.config import MethodConfig, nearest
from peft_kernels.layer import AdapterLayer
from peft_kernels.tensors import CHILD, OwnedTensors, TrainedTensors


def raw_tensors(model: nn.Module, config: MethodConfig) -> list[str]:
    """The entries of ``modules_to_save`` that are raw parameters; an entry that is nothing raises."""
    modules = [name for name, _ in model.named_modules(remove_duplicate=False)]
    raw = []
    for wanted in config.modules_to_save or []:
        if any(name.endswith(wanted) for name in modules if name):  # PEFT's own rule
            continue
        path, _, leaf = wanted.rpartition(".")
        owner = _submodule(model, path)
        if owner is None or owner._parameters.get(leaf) is None:
            known = modules + [name for name, _ in model.named_parameters()]
            raise ValueError(
                f"`modules_to_save` names {wanted!r}, which is neither a module nor a parameter of "
                f"{type(model).__name__}{nearest(wanted, known)}"
            )
        raw.append(wanted)
    return raw


def attach_raw_tensors(model: nn.Module, prefix: str, config: Any, adapter_name: str, active: list[str]) -> None:
    """Give the raw parameters that ``config`` names trained copies, in a child layer of each module that owns some."""
    owners: dict[str, list[str]] = {}
    for name in raw_tensors(model, config):
        path, _, leaf = name.rpartition(".")
        owners.setdefault(path, []).append(leaf)
    for path, names in owners.items():
        owner = model.get_submodule(path) if path else model
        copies = TrainedTensors(owner, names, config.init_weights)
        child = owner._modules.get(CHILD)
        layer = child if isinstance(child, OwnedTensors) else OwnedTensors(owner, prefix)
        here = [name for name in active if name in layer.adapters or name == adapter_name]
        layer.add_adapter(adapter_name, copies, here, inference_mode=config.inference_mode)
        for name in names:
            parameter = owner._parameters[name]  # by attribute one would get the trained copy
            assert parameter is not None
            parameter.requires_grad_(False)


@contextmanager
def all_or_nothing(model: nn.Module, configs: dict[str, Any], adapter_name: str) -> Iterator[None]:
    """Undo everything done to ``model`` within the ``with`` block if it raises: modules, flags, the configuration."""
    children = {module: dict(module._modules) for module in model.modules()}
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    except BaseException:
        for module in list(model.modules()):
            if module not in children and isinstance(module, (AdapterLayer, OwnedTensors)):
                module.detach()
        for module, before in children.items():
            module._modules.clear()
            module._modules.update(before)
            if isinstance(module, (AdapterLayer, OwnedTensors)):
                module.scaling.pop(adapter_name, None)
            elif isinstance(module, AuxiliaryTrainingWrapper):
                module._adapters.discard(adapter_name)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        configs.pop(adapter_name, None)
        raise


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path) if path else model
    except AttributeError:
        return None
