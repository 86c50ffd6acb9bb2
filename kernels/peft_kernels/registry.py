"""The methods that are installed: found through the entry-point group ``peft_kernels.methods``, by name.

A package offers methods by naming a module in that group; importing the module registers them, here and with PEFT.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from functools import cache
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any, TypeVar

import peft
from peft import PeftConfig, PeftModel
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from torch import nn

from peft_kernels import targets
from peft_kernels.config import nearest

GROUP = "peft_kernels.methods"
# Fields of a configuration that describe a saved adapter rather than the method.
_BOOKKEEPING = {f.name for f in dataclasses.fields(PeftConfig)}
_METHODS: dict[str, Method] = {}
Config = TypeVar("Config", bound=type[PeftConfig])


@dataclasses.dataclass(frozen=True)
class Method:
    """One entry of the table of methods.

    Attributes:
        name: the name in recipes and on the command line.
        config_class: its PEFT configuration.
        family: ``vision`` or ``diffusion``, where the method comes from.
        summary: one sentence.
        paper: where it was published.
        fixed: fields of the configuration that make it this method (``use_dora`` for DoRA).
        prepare: fills the fields a foreign configuration cannot resolve by itself (PEFT's own methods on timm).
        choose: for methods that look at data before they are attached: ``choose(config, model, batches, loss)`` returns
            the configuration with the fields filled that the data decide; the model stays as it was. Its configuration
            has the fields ``num_batches`` and ``batch_size``.
        needs: what a model must have that not every model has, such as ``long skip connections``; empty for any model.
        group: for methods with an optimiser group of their own: ``group(config, name)`` gives, for the trainable
            parameter called ``name``, what differs from the rest: ``lr_ratio``, a factor on the learning rate,
            ``weight_decay``, or ``decays`` where the run's weight decay holds for a vector too.
    """

    name: str
    config_class: type[PeftConfig]
    family: str
    summary: str
    paper: str = ""
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=lambda: MappingProxyType({}))
    prepare: Callable[[nn.Module, Any], Any] | None = None
    choose: Callable[[Any, nn.Module, Iterable[Any], Any], Any] | None = None
    group: Callable[[Any, str], Mapping[str, float]] | None = None
    needs: str = ""

    def fields(self) -> list[dataclasses.Field]:
        """The hyperparameters: the fields a recipe may set."""
        hidden = _BOOKKEEPING | set(self.fixed)
        return [f for f in dataclasses.fields(self.config_class) if f.init and f.name not in hidden]

    def config(self, model: nn.Module | None = None, **values: Any) -> PeftConfig:
        """The configuration with the given fields; ``model`` lets PEFT's own methods find their default targets.

        Raises:
            ValueError: a field the method does not have, with the nearest right name.
        """
        known = [f.name for f in self.fields()]
        for key in values:
            if key not in known:
                raise ValueError(f"method {self.name!r} has no field {key!r}{nearest(key, known)}")
        config = self.config_class(**values, **self.fixed)
        return self.prepare(model, config) if self.prepare is not None and model is not None else config

    def attach(self, model: nn.Module, config: PeftConfig | None = None, **values: Any) -> PeftModel:
        """Attach a new adapter: ``get_peft_model(model, config)``, by default with ``self.config(model, **values)``."""
        name = targets.model_name(model)
        config = self.config(model, **values) if config is None else config
        attached = peft.get_peft_model(model, config)  # type: ignore[arg-type]
        attached.active_peft_config.base_model_name_or_path = name
        return attached  # type: ignore[return-value]


def offer(method: Method) -> None:
    """Add a method to the table; a second method of the same name is refused."""
    known = _METHODS.get(method.name)
    if known is not None and known != method:
        raise ValueError(f"two methods are called {method.name!r}: {known.config_class} and {method.config_class}")
    _METHODS[method.name] = method


def register(
    name: str,
    *,
    tuner: type,
    prefix: str,
    family: str,
    summary: str,
    paper: str = "",
    choose: Callable[[Any, nn.Module, Iterable[Any], Any], Any] | None = None,
    group: Callable[[Any, str], Mapping[str, float]] | None = None,
    needs: str = "",
) -> Callable[[Config], Config]:
    """Class decorator of a configuration: register the method with PEFT and in the table.

    The configuration's ``peft_type`` becomes a one-member ``str`` enumeration (PEFT and transformers read ``.value``).

    Raises:
        ValueError: a name or prefix that collides with one PEFT knows.
    """
    tag = name.upper()
    for known, other in PEFT_TYPE_TO_PREFIX_MAPPING.items():
        if known != tag and (prefix in other or other in prefix):
            raise ValueError(f"the prefix {prefix!r} of method {name!r} collides with {other!r} of {known}")
    enumeration: Any = Enum(f"{tag}Type", {tag: tag}, type=str, module=__name__)
    globals()[enumeration.__name__] = enumeration  # found by name when a configuration is unpickled
    peft_type = enumeration[tag]
    tuner.prefix = prefix  # type: ignore[attr-defined]

    def decorate(config_class: Config) -> Config:
        inner = config_class.__post_init__

        def with_type(self: Any) -> None:
            inner(self)
            self.peft_type = peft_type

        config_class.__post_init__ = with_type  # type: ignore[method-assign]
        PEFT_TYPE_TO_CONFIG_MAPPING[peft_type] = config_class  # type: ignore[index]
        PEFT_TYPE_TO_TUNER_MAPPING[peft_type] = tuner  # type: ignore[index]
        PEFT_TYPE_TO_PREFIX_MAPPING[peft_type] = prefix  # type: ignore[index]
        offer(Method(name, config_class, family, summary, paper, choose=choose, group=group, needs=needs))
        return config_class

    return decorate


@cache
def _load_entry_points() -> None:
    for entry in entry_points(group=GROUP):
        importlib.import_module(entry.value)


def methods() -> dict[str, Method]:
    """All methods by name, in alphabetical order."""
    _load_entry_points()
    return dict(sorted(_METHODS.items()))


def method(name: str) -> Method:
    """The method called ``name``.

    Raises:
        ValueError: no such method, with the nearest right name.
    """
    known = methods()
    if name not in known:
        raise ValueError(f"unknown method {name!r}{nearest(name, known)}; known are {', '.join(known)}")
    return known[name]
