"""Which adapters of a model run, and how strongly, for models that carry adapter layers themselves.

What some of diffusers' models can do by themselves (`set_adapters`, `disable_adapters`, `delete_adapters`), here for
every model and method: all that is asked for is checked before anything changes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from peft import PeftModel
from peft.tuners.boft.layer import BOFTLayer
from peft.tuners.ln_tuning.layer import LNTuningLayer
from peft.tuners.oft.layer import OFTLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from peft_kernels.adapter_state import check_name
from peft_kernels.layer import AdapterLayer
from peft_kernels.tensors import OwnedTensors

# Starts of PEFT's LoRA that take the adapter's part out of the base model's weights.
_OUT_OF_BASE = ("pissa", "olora", "corda", "loftq")


def set_adapters(model: nn.Module, names: str | Sequence[str], weights: float | Sequence[float] = 1.0) -> None:
    """Let these adapters run, each with its weight, and no others; also where all had been disabled.

    A weight of 1 is the adapter as trained, with 0 it does not run; between them a factor where a method adds a change,
    an interpolation to the base elsewhere. Adapters attached or loaded to be trained are trained while they run.

    Args:
        model: a model with adapters.
        names: one name or several.
        weights: one for all, or one each.

    Raises:
        AdapterError: there is no adapter of a name.
        ValueError: not as many weights as names, one that is no finite number, or a name twice; a method that knows no
            weight (PEFT's OFT, IA3, LN tuning) at another one than 0 and 1, or that runs one adapter at a time (LN
            tuning, trained modules) with several.
    """
    names = [names] if isinstance(names, str) else list(names)
    each = _weights(weights, len(names))
    for name in names:
        check_name(model, name)
        if names.count(name) > 1:
            raise ValueError(f"adapter {name!r} is named twice: give each adapter one weight")
    strengths = dict(zip(names, each, strict=True))
    layers = list(_layers(model))
    for layer in layers:
        _check(layer, strengths)
    configs: dict[str, Any] = model.peft_config  # type: ignore[assignment]
    _warn_of_base(model, [name for name in configs if strengths.get(name) != 1])
    frozen = [name for name in names if configs[name].inference_mode]
    for layer in layers:
        running = [name for name in names if strengths[name] != 0]
        if _runs_one(layer):
            running = [name for name in running if name in _names(layer)]
        if layer.disable_adapters:
            layer.enable_adapters(True)
        layer.set_adapter(running)
        layer.set_requires_grad(frozen, False)
        for name in running if _adjusts(layer) else ():
            layer.set_scale(name, strengths[name])
    _tell(model, names)


def enable_adapters(model: nn.Module, enabled: bool = True) -> None:
    """Let the active adapters run again, or (``enabled=False``) none, with the base model's outputs.

    Warns where LoRA began with a part of the base model's weights (PiSSA, OLoRA): without it they lack that part.
    """
    if not enabled:
        _warn_of_base(model, getattr(model, "peft_config", {}))
    frozen = [name for name, config in getattr(model, "peft_config", {}).items() if config.inference_mode]
    for layer in _layers(model):
        layer.enable_adapters(enabled)
        layer.set_requires_grad(frozen, False)  # which PEFT's call unfreezes


def delete_adapters(model: nn.Module, names: str | Sequence[str]) -> None:
    """Take adapters off; modules without any are as they were before the first, or (PiSSA, OLoRA) a warning says not.

    Raises:
        AdapterError: there is no adapter of a name.
        ValueError: one of them is merged, or they are all that a `PeftModel` has: without any it would be none.
    """
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        check_name(model, name)
    if isinstance(model, PeftModel) and set(model.peft_config) <= set(names):
        raise ValueError("these are all adapters of a PeftModel: `unload()` gives the plain model back")
    layers = list(_layers(model))
    for layer in layers:
        merged = [name for name in names if name in getattr(layer, "merged_adapters", ())]
        if merged:
            raise ValueError(f"adapter {merged[0]!r} is merged into the model: unmerge it first")
    _warn_of_base(model, names)
    for layer in layers:
        for name in names:
            arguments = ([],) if isinstance(layer, AuxiliaryTrainingWrapper) else ()
            layer.delete_adapter(name, *arguments)
    for name in names:
        model.peft_config.pop(name)  # type: ignore[operator]
    for layer in layers:
        if isinstance(layer, OwnedTensors) and not _names(layer):
            layer.detach()
    for parent in list(model.modules()):
        for child, layer in list(parent._modules.items()):
            if isinstance(layer, (BaseTunerLayer, AuxiliaryTrainingWrapper)) and not _names(layer):
                parent._modules[child] = _taken_off(layer)
    if not model.peft_config:
        del model.peft_config  # type: ignore[misc] (of a PeftModel one is left)
    else:
        _tell(model, [name for name in _active(layers) if name in model.peft_config])  # type: ignore[operator]


def _weights(given: Any, count: int) -> list[float]:
    """One finite weight for each of ``count`` adapters."""
    alone = type(given) in (int, float, bool, str) or getattr(given, "ndim", 1) == 0
    try:
        each = [float(weight) for weight in ([given] * count if alone else given)]
    except (TypeError, ValueError):
        raise ValueError(f"weights must be a number, or one for each adapter; found {given!r}") from None
    if len(each) != count:
        raise ValueError(f"{count} adapters need as many weights or one for all; found {len(each)}")
    for weight in each:
        if not math.isfinite(weight):
            raise ValueError(f"weights must be finite; found {weight:g}")
    return each


def _layers(model: nn.Module) -> Iterator[Any]:
    for module in list(model.modules()):
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            yield module


def _warn_of_base(model: Any, without: Iterable[str]) -> None:
    for name in without:
        start = getattr(model.peft_config[name], "init_lora_weights", None)
        if isinstance(start, str) and start.startswith(_OUT_OF_BASE):
            warnings.warn(
                f"adapter {name!r} holds a part of the base weights (init_lora_weights={start!r}): without it, or "
                "at another weight than 1, the model is not the base model; load that anew",
                stacklevel=3,
            )


def _names(layer: Any) -> set[str]:
    if isinstance(layer, AuxiliaryTrainingWrapper):
        return set(layer._adapters)
    return {name for attribute in layer.adapter_layer_names for name in getattr(layer, attribute)}


def _active(layers: list[Any]) -> list[str]:
    return list(dict.fromkeys(name for layer in layers for name in layer.active_adapters))


def _adjusts(layer: Any) -> bool:
    """Whether the layer knows a strength; that of OFT is always 1, whatever is set."""
    return hasattr(layer, "set_scale") and not isinstance(layer, (OFTLayer, BOFTLayer))


def _runs_one(layer: Any) -> bool:
    """Whether at most one adapter of the layer can run, and no other name may be active there."""
    return isinstance(layer, (LNTuningLayer, AuxiliaryTrainingWrapper))


def _check(layer: Any, strengths: dict[str, float]) -> None:
    own = {name: weight for name, weight in strengths.items() if name in _names(layer)}
    kind = type(layer)
    for name, weight in own.items() if not _adjusts(layer) else ():
        if weight not in (0, 1):
            raise ValueError(
                f"{name!r} ({kind.__module__}.{kind.__name__}) knows no weight but 0 and 1; found {weight:g}"
            )
    if _runs_one(layer) and sum(w != 0 for w in own.values()) > 1:
        raise ValueError(f"{kind.__name__} runs one adapter at a time; found {', '.join(own)}")


def _taken_off(layer: Any) -> nn.Module:
    if isinstance(layer, AuxiliaryTrainingWrapper):
        return layer.original_module
    if isinstance(layer, AdapterLayer):
        layer.detach()
    return layer.base_layer


def _tell(model: nn.Module, names: list[str]) -> None:
    """Tell a `PeftModel`, which keeps the names of the active adapters beside its layers."""
    if isinstance(model, PeftModel) and names:
        model.active_adapter = names[0]
        model.base_model.active_adapter = names  # type: ignore[assignment]
