"""The fields that every method's configuration shares; a method's own config adds its hyperparameters.

A configuration is plain data: it is saved as JSON beside the adapter and read back without importing anything.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig

MOST_NAMES = 60  # that an error lists


@dataclass
class MethodConfig(PeftConfig):
    """Configuration shared by all methods of this project.

    Args:
        target_modules: names (suffixes) of the modules to adapt, or one regular expression matched against whole
            names. An entry may choose row blocks of a fused projection: ``"attn.qkv[q,v]"``. ``None`` takes the
            method's default targets for the model's architecture family.
        exclude_modules: names or a regular expression of modules that are never adapted.
        modules_to_save: modules, or raw parameters such as ``"cls_token"``, trained in full and saved with the
            adapter. ``None`` takes the classifier of the model, ``[]`` nothing. A name that matches nothing raises.
        layers_to_transform: indices of the layers to adapt; ``None`` adapts all (with a list of ``target_modules``).
        layers_pattern: name of the layer list that ``layers_to_transform`` counts in.
        init_weights: ``True`` for the method's own start, ``False`` for a random start that changes the function.
    """

    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Modules to adapt: name suffixes, 'qkv[q,v]' row blocks, or one regex."}
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Modules never adapted: name suffixes or one regex."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules or raw parameters trained in full; the classifier when not given."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Indices of the layers to adapt; all when not given."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the layer list that layers_to_transform counts in."}
    )
    init_weights: bool = field(default=True, metadata={"help": "False: a random start that changes the function."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.target_modules, (set, tuple)):
            self.target_modules = sorted(self.target_modules)
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError(
                "`layers_to_transform` needs `target_modules` as a list of names; "
                f"found the regular expression {self.target_modules!r}"
            )

    @property
    def resolved(self) -> bool:
        """Whether fields have been filled in for a model."""
        return "_before" in self.__dict__

    def remember_defaults(self, found: dict[str, Any]) -> None:
        """Set the fields in ``found``, which were resolved for one model."""
        self._before = {name: (getattr(self, name), value) for name, value in found.items()}
        for name, value in found.items():
            setattr(self, name, value)

    def unresolved_copy(self) -> MethodConfig:
        """A copy with the fields that a model resolved, and nobody has changed since, as the user gave them."""
        new = copy.copy(self)
        for name, (before, resolved) in new.__dict__.pop("_before", {}).items():
            if getattr(new, name) == resolved:
                setattr(new, name, before)
        return new


def require(condition: bool, owner: object, name: str, expected: str) -> None:
    """Raise a ValueError that names the field ``name`` of the config ``owner``, what it holds and what it should."""
    if not condition:
        raise ValueError(f"{type(owner).__name__}.{name} must be {expected}; found {getattr(owner, name)!r}")


def choices(owner: object, name: str, allowed: Iterable[str]) -> None:
    """Raise a ValueError with the nearest right name when the field ``name`` holds none of ``allowed``."""
    allowed = list(allowed)
    value = getattr(owner, name)
    if value not in allowed:
        raise ValueError(
            f"{type(owner).__name__}.{name} must be one of {', '.join(allowed)}; "
            f"found {value!r}{nearest(value, allowed)}"
        )


def nearest_or_known(name: object, known: Iterable[str]) -> str:
    """`nearest`, or the names that there are where none is near: all of few, the first of many."""
    names = list(known)
    more = f" and {len(names) - MOST_NAMES:,} others" if len(names) > MOST_NAMES else ""
    return nearest(name, names) or f": known are {', '.join(names[:MOST_NAMES]) or 'none'}{more}"


def nearest(name: object, known: Iterable[str]) -> str:
    """The phrase `` (did you mean 'x'?)`` for the known name closest to ``name``, or nothing."""
    match = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""
