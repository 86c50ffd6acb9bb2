"""Attaching by PEFT, and what goes with it: raw parameters, and taking everything back when it fails half-way."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftConfig, PeftModel, inject_adapter_in_model
from peft.tuners.tuners_utils import cast_adapter_dtype
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from peft_kernels.config import MethodConfig, nearest
from peft_kernels.layer import AdapterLayer
from peft_kernels.tensors import CHILD, OwnedTensors, TrainedTensors


def attach(
    model: nn.Module,
    config: PeftConfig,
    name: str,
    bare: bool = False,
    autocast: bool = True,
    low_cpu_mem_usage: bool = False,
) -> nn.Module:
    """Attach a new adapter: in a `PeftModel`, around ``model`` where it is none, or (``bare``) in the model itself.

    A bare model stays what it is, as with diffusers, and the new adapter is the active one; a `PeftModel` keeps its.
    """
    if bare and not isinstance(model, PeftModel):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            # PEFT on norms of classes that it cannot tell the sizes of; it does not need them.
            warnings.filterwarnings("ignore", message="Unsupported layer type")
            inject_adapter_in_model(config, model, name, low_cpu_mem_usage=low_cpu_mem_usage)
        cast_adapter_dtype(model, name, autocast)
        for module in list(model.modules()):
            if isinstance(module, OwnedTensors):
                module.refresh()
        return model
    options: dict[str, Any] = {"autocast_adapter_dtype": autocast, "low_cpu_mem_usage": low_cpu_mem_usage}
    if isinstance(model, PeftModel):
        model.add_adapter(name, config, **options)
        return model
    cls = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(str(config.task_type), PeftModel)
    return cls(model, config, name, **options)  # type: ignore[arg-type]


@contextmanager
def as_before_on_failure(model: nn.Module) -> Iterator[None]:
    """Put the structure of ``model`` back if the block fails: modules, hooks, attributes and flags of every module."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    state = [module.__dict__ for module in model.modules()]
    saved = [(own, dict(own), [(d, dict(d)) for d in own.values() if isinstance(d, dict)]) for own in state]
    try:
        yield
    except BaseException:
        for own, attributes, inner in saved:
            for place, content in [(own, attributes), *inner]:
                same = len(place) == len(content) and all(place.get(key) is content[key] for key in content)
                if not same:  # those that were never changed may refuse to be (diffusers' configurations)
                    place.clear()
                    place.update(content)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        raise


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
