"""Two methods on one model: they live side by side on different modules; on one module the second is refused.

Two on one module cannot be merged as they run: PEFT writes into the innermost weight, which SSF has scaled and full
fine-tuning replaced by then. And PEFT skips modules inside a wrapped one without a word. So both are refused, before
anything is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any
from weakref import ref

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from peft_kernels.config import MethodConfig
from peft_kernels.layer import AdapterLayer
from peft_kernels.tensors import CHILD, OwnedTensors


def refuse_targets(config: Any, model: nn.Module, wanted: Callable[[str], Any], attribute: str = "") -> None:
    """Raise if a module that ``wanted`` names is, holds or lies in an adapter layer; the methods' own excepted.

    Args:
        config: the configuration that names the modules, for the message.
        model: the model, of which some modules may be wrapped.
        wanted: whether the module of this name is to be adapted; the name is that in the model without adapters.
        attribute: the method's own adapters, which its layers hold under this name; they take further adapters.

    Raises:
        ValueError: naming the module and the layer.
    """
    for key, layer, inside in _in_the_way(model, wanted):
        if attribute not in layer.adapter_layer_names:
            kind = type(layer)
            raise ValueError(
                f"{key!r} already carries an adapter of another method ({kind.__module__}.{kind.__name__}); "
                f"{type(config).__name__} cannot be put on top of it: merge or unload that adapter first, or target "
                "other modules"
            )
        if inside:
            raise ValueError(
                f"{key!r} lies inside a module that an adapter of the same method wraps as a whole; "
                f"{type(config).__name__} cannot adapt it too: unload that adapter first, or target other modules"
            )


def _in_the_way(model: nn.Module, wanted: Callable[[str], Any]) -> Iterator[tuple[str, BaseTunerLayer, bool]]:
    outer: tuple[str, BaseTunerLayer] | None = None
    for key, module in model.named_modules():
        if outer and not key.startswith(f"{outer[0]}."):
            outer = None
        if outer and not key.startswith(f"{outer[0]}.base_layer."):
            continue  # the adapters themselves
        if key and wanted(key.replace(".base_layer", "")):
            for layer in [outer[1]] if outer else module.modules():
                if isinstance(layer, BaseTunerLayer):
                    yield key.replace(".base_layer", ""), layer, outer is not None
        if outer is None and isinstance(module, BaseTunerLayer):
            outer = key, module


def refuse_owner(config: Any, model: nn.Module, names: list[str], attribute: str) -> None:
    """Raise if another method trains raw parameters of a module that owns one of ``names``.

    Raises:
        ValueError: naming the parameter.
    """
    for name in names:
        child = model.get_submodule(name.rpartition(".")[0])._modules.get(CHILD)
        if isinstance(child, OwnedTensors) and attribute not in child.adapter_layer_names:
            raise ValueError(
                f"another method trains raw parameters beside {name!r} already ({', '.join(child.names())}); "
                f"{type(config).__name__} cannot: name it in `modules_to_save` of one of the two"
            )


class GuardedConfigs(dict[str, Any]):
    """The configurations of a model's adapters; takes none of PEFT's own that would wrap one of our layers.

    PEFT's tuners write here before they change the model, and do not ask whose the layers are that they wrap.
    """

    def __init__(self, configs: Mapping[str, Any] | None = None, model: nn.Module | None = None) -> None:
        super().__init__(configs or {})
        self._model = ref(model) if model is not None else lambda: None

    def __setitem__(self, name: str, config: Any) -> None:
        self._check(config)
        super().__setitem__(name, config)

    def update(self, *args: Any, **kwargs: Any) -> None:
        configs = dict(*args, **kwargs)
        for config in configs.values():
            self._check(config)
        super().update(configs)

    def __reduce__(self) -> Any:
        return GuardedConfigs, (), (dict(self), self._model())

    def __setstate__(self, state: tuple[dict[str, Any], nn.Module]) -> None:
        self.__init__(*state)

    def _check(self, config: Any) -> None:
        model, tuner = self._model(), PEFT_TYPE_TO_TUNER_MAPPING.get(config.peft_type)
        if model is None or tuner is None or isinstance(config, MethodConfig):
            return
        if getattr(config, "target_modules", None) is None:
            return
        if any(isinstance(module, AdapterLayer) for module in model.modules()):
            # Inside a PeftModel names have a prefix, which a regular expression may spell out.
            refuse_targets(
                config,
                model,
                lambda name: any(
                    tuner._check_target_module_exists(config, n) for n in (name, f"base_model.model.{name}")
                ),
            )
