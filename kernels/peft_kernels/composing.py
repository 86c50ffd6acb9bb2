"""Several methods on one model: prompts and scales, biases and LoRA, norms and SNELL.

PEFT's `get_peft_model` takes one method a model, and its layers hide what they wrap from the next. `compose` attaches
each method to the model as if it were alone, whatever the order, and puts their layers together afterwards: on
different modules, or one method's block around another's projections. Every adapter has a name of its own; all are
active, and each is saved as if it were alone.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import LNTuningConfig, PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from peft_kernels import targets
from peft_kernels.adapter_files import find_adapter, read_config
from peft_kernels.attaching import as_before_on_failure
from peft_kernels.config import MethodConfig
from peft_kernels.feature import FeatureLayer
from peft_kernels.hotswap import hotswap_adapter
from peft_kernels.registry import methods
from peft_kernels.reparam import ReparamLayer
from peft_kernels.tuner import AdapterTuner


class ComposedModel(PeftModel):
    """A `PeftModel` with adapters of several methods, each under its name; made by `compose`.

    `set_adapter` takes one name or several, `save_pretrained` writes a folder a name, and everything else is PEFT's:
    disabling, merging (all of it or, with the reason, nothing), deleting, unloading.
    """

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        for name in names:
            if name not in self.peft_config:
                raise ValueError(f"Adapter {name} not found; the model has {', '.join(self.peft_config)}")
        self.active_adapter = names[0]
        self.base_model.set_adapter(names, inference_mode=inference_mode)  # type: ignore[operator]
        for _, _, layer in _places(self):  # PEFT's norms ask that there be no other names than theirs
            own = [name for name in names if name in _names(layer)]
            layer.enable_adapters(bool(own))
            layer.set_adapter(own, inference_mode=inference_mode)

    def add_adapter(self, adapter_name: str, peft_config: PeftConfig, *args: Any, **kwargs: Any) -> None:
        """Refuse: layers that stand already would hide modules from the new method.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"the methods of a composed model come all at once: give {adapter_name!r} to `compose` too")

    def save_pretrained(
        self, save_directory: str, *args: Any, selected_adapters: list[str] | None = None, **kwargs: Any
    ) -> None:
        for name in selected_adapters or list(self.peft_config):
            with self.alone(name):
                super().save_pretrained(save_directory, *args, selected_adapters=[name], **kwargs)

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """The model without the layers of other adapters than ``name``, so that modules are called as in the base."""
        with without_layers(self, name):
            yield


@contextmanager
def without_layers(model: nn.Module, but: str | None = None) -> Iterator[None]:
    """Within the block ``model`` has the modules of before its adapters, except for the layers of the one named."""
    taken = [place for place in _places(model) if but is None or but not in _names(place[2])]
    for parent, child, layer in taken:
        parent._modules[child] = layer.base_layer
    try:
        yield
    finally:
        for parent, child, layer in taken:
            parent._modules[child] = layer


def compose(
    model: nn.Module, parts: Mapping[str, PeftConfig | str | Path], *, is_trainable: bool = True
) -> ComposedModel:
    """Put several methods on ``model``, all active and trained together.

    Args:
        model: the base model; it is wrapped in place, and as it was before on any failure.
        parts: by the name that each adapter gets: a configuration for a new one, or the folder of a saved one. The
            first configuration that does not say what is trained in full (`modules_to_save`) trains the classifier.
        is_trainable: whether the adapters are trained; otherwise they are frozen and the model is in evaluation mode.

    Raises:
        ValueError: fewer than two parts, a model that carries adapters already, two methods for one module, two that
            train one module in full, or one that changes tensors of a module within which another adapts modules.
        AdapterError: a saved part fails a check of `load_adapter`.
    """
    if len(parts) < 2:
        raise ValueError(f"`compose` takes two methods or more, found {len(parts)}: one is for `get_peft_model`")
    if isinstance(model, PeftModel) or any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError("`compose` takes a plain model and all methods at once; this one carries adapters already")
    with as_before_on_failure(model), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        composed = _attach(model, _configs(model, parts, is_trainable))
        for name, part in parts.items():
            if not isinstance(part, PeftConfig):
                with composed.alone(name):
                    hotswap_adapter(composed, part, name)
        composed.set_adapter(list(parts), inference_mode=not is_trainable)
    return composed.train(model.training and is_trainable)


def _configs(model: nn.Module, parts: Mapping[str, PeftConfig | str | Path], trainable: bool) -> dict[str, Any]:
    """The configurations, the first that of the tuner which merges all: ours undo what fails, PEFT's norms refuse.

    Raises:
        ValueError: two of them train the same module in full.
    """
    found: dict[str, Any] = {}
    for name, part in parts.items():
        found[name] = copy.copy(part) if isinstance(part, PeftConfig) else read_config(find_adapter(part).config)
        found[name].inference_mode = not trainable
    owners: dict[str, str] = {}
    for name, config in found.items():
        for module in config.modules_to_save or []:
            if owners.setdefault(module, name) != name:
                raise ValueError(
                    f"both {owners[module]!r} and {name!r} train {module!r} in full: leave it to one of them, with "
                    "`modules_to_save=[]` in the other's configuration"
                )
    heads = targets.head_names(model)
    head_free = not owners.keys() & set(heads)
    for name, config in found.items():
        if config.modules_to_save is None and not head_free:  # what the method trains in full beside the head
            tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
            own = tuner.__new__(tuner).default_modules_to_save(config, model) if issubclass(tuner, AdapterTuner) else []
            config.modules_to_save = [module for module in own if module not in heads]
        head_free = head_free and config.modules_to_save is not None
        prepare = next((m.prepare for m in methods().values() if type(config) is m.config_class and m.prepare), None)
        if prepare:
            found[name] = prepare(model, config)
            config.base_model_name_or_path = config.base_model_name_or_path or targets.model_name(model)

    def last(item: tuple[str, Any]) -> tuple[bool, bool]:
        return not isinstance(item[1], MethodConfig), isinstance(item[1], LNTuningConfig)

    return dict(sorted(found.items(), key=last))


def _attach(model: nn.Module, configs: dict[str, Any]) -> ComposedModel:
    composed, places = None, []
    for name, config in configs.items():
        if composed is None:
            composed = ComposedModel(model, config, name)
            composed.base_model.tuner_layer_cls = BaseTunerLayer  # type: ignore[assignment]  # for the others' layers
        else:
            tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
            tuner(model, config, adapter_name=name)
        new = list(_places(model))
        if not new:
            raise ValueError(
                f"{name!r} ({type(config).__name__}) adapts no modules: every method trains the classifier"
            )
        places += new
        for parent, child, layer in new:  # the next method finds the model as it was
            parent._modules[child] = layer.base_layer
    assert composed is not None
    _put_on(model, places)
    return composed


def _put_on(model: nn.Module, places: list[Place]) -> None:
    """Put the layers, each made around the plain module, back into the model together.

    Raises:
        ValueError: two layers for one module, except for LoRA and trained biases; a module that another method trains
            in full; or a layer that changes tensors of a module within which another adapts modules.
    """
    paths = {module: name for name, module in model.named_modules()}
    owners: dict[nn.Module, Any] = {}
    for parent, child, layer in places:
        module = parent._modules[child]
        if isinstance(module, AuxiliaryTrainingWrapper):
            raise ValueError(
                f"{sorted(_names(layer))[0]!r} adapts {paths[module]!r}, which another method trains in full: leave it "
                "out of one of them (`exclude_modules`, `modules_to_save`)"
            )
    for parent, child, layer in places:
        base = layer.base_layer
        if base in owners:
            layer = _together(owners[base], layer, paths[base])
        parent._modules[child] = owners[base] = layer
    for base, layer in owners.items():
        inside = next((module for module in base.modules() if module is not base and module in owners), None)
        if inside is not None and not isinstance(layer, FeatureLayer):
            one, two = (sorted(_names(each))[0] for each in (layer, owners[inside]))
            raise ValueError(
                f"{one!r} changes tensors of {paths[base]!r} as a whole, in which {two!r} adapts {paths[inside]!r}: "
                "leave one of the two modules out (`exclude_modules`)"
            )


def _together(one: Any, two: Any, path: str) -> Any:
    """The outer one of two layers of one module: PEFT's LoRA (not DoRA) runs and merges beside trained biases."""
    for inner, outer in ((one, two), (two, one)):
        adapters = inner.adapters.values() if isinstance(inner, ReparamLayer) else ()
        lora = isinstance(outer, LoraLayer) and not any(outer.use_dora.values())
        if lora and adapters and all(adapter.tensors == ("bias",) for adapter in adapters):
            outer.base_layer = inner
            return outer
    first, second = (sorted(_names(layer))[0] for layer in (one, two))
    raise ValueError(
        f"{path!r} is a target of both {first!r} and {second!r}: give one of them other `target_modules`, or "
        "`exclude_modules`"
    )


Place = tuple[nn.Module, str, Any]


def _places(model: nn.Module) -> Iterator[Place]:
    """Every adapter layer that wraps a module: the parent, the child's name there, the layer."""
    for parent in list(model.modules()):
        for child, layer in list(parent._modules.items()):
            if isinstance(layer, BaseTunerLayer) and "base_layer" in layer._modules:
                yield parent, child, layer


def _names(layer: Any) -> set[str]:
    return {name for attribute in layer.adapter_layer_names for name in getattr(layer, attribute)}
