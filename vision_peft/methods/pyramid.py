"""A pyramid of frozen branches: what it adds to them is trained and saved by itself."""

from __future__ import annotations

from typing import Any

from torch import nn

from peft_kernels.owners import tensor_owners
from peft_kernels.targets import head_names, raw_parameters
from vision_peft.methods.trained import FullConfig
from vision_peft.models.piip import Piip


def interactions_config(model: nn.Module, **settings: Any) -> FullConfig:
    """A configuration for ``get_peft_model`` that trains all but the branches: interactions, merge and classifiers.

    The adapter's file holds these alone; with the adapter disabled the model is the pyramid as it was. Unloaded it is
    so but for its classifiers: as with any method, PEFT leaves the trained ones.

    Args:
        model: a pyramid.
        settings: further fields of the configuration.

    Raises:
        ValueError: the model is no pyramid.
    """
    if not isinstance(model, Piip):
        raise ValueError(f"interactions_config takes a pyramid of vision_peft.pyramid; found {type(model).__name__}")
    heads = head_names(model)
    left = tuple(f"{name}." for name in [*heads, *(f"branch{j}" for j in range(1, len(model.layout.sizes) + 1))])
    owners = [name for name, _ in tensor_owners(model) if not f"{name}.".startswith(left)]
    raw = [name for name in raw_parameters(model, owners) if not name.startswith(left)]
    return FullConfig(target_modules=owners, modules_to_save=[*heads, *raw], **settings)
