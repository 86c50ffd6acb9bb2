"""Parts of a model's forward pass that are also called by themselves: `forward_features` and its kin in timm.

No forward hook sees such a call. An `Entrance` stands in the model's instance dictionary, where look-up finds it before
the class's method, and calls that method through whatever has to hold around a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

ENTRANCES = ("forward_features", "forward_intermediates", "forward_head")
Around = Callable[..., Any]  # around(call, *args, **kwargs) gives what call(*args, **kwargs) gives


class Entrance:
    """The method ``name`` of ``owner``, called through each of ``arounds``, the last outermost."""

    def __init__(self, owner: nn.Module, name: str) -> None:
        self.owner, self.name = owner, name
        self.arounds: list[Around] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call: Callable[..., Any] = partial(getattr(type(self.owner), self.name), self.owner)
        for around in self.arounds:
            call = partial(around, call)
        return call(*args, **kwargs)


class GuardedEntrances:
    """Lets all entrances of ``owner`` be called through ``around`` until `remove`; those of others stay as they are."""

    def __init__(self, owner: nn.Module, around: Around) -> None:
        self.owner, self.around = owner, around
        for name in ENTRANCES:
            if hasattr(type(owner), name):
                entrance = owner.__dict__.setdefault(name, Entrance(owner, name))
                if isinstance(entrance, Entrance):
                    entrance.arounds.append(around)

    def remove(self) -> None:
        """Take it out again, and entrances through which nothing else is called."""
        for name in ENTRANCES:
            entrance = self.owner.__dict__.get(name)
            if isinstance(entrance, Entrance) and self.around in entrance.arounds:
                entrance.arounds.remove(self.around)
                if not entrance.arounds:
                    del self.owner.__dict__[name]
