"""A pyramid of frozen branches: what it adds to them is trained and saved by itself."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from peft_kernels.owners import tensor_owners
from peft_kernels.targets import head_names, plain_modules, raw_parameters
from vision_peft.methods.trained import FullConfig
from vision_peft.models.piip import Piip


def interactions_config(model: nn.Module, **settings: Any) -> FullConfig:
    """A configuration for ``get_peft_model`` that trains all but the branches: interactions, merge and what reads them.

    The adapter's file holds these alone; with the adapter disabled the model is what it was. Unloaded it is so but for
    its classifiers and batch norms: as with any method, PEFT leaves the trained ones.

    Args:
        model: a pyramid, also one with ``features_only``, or a model that holds one, such as a detector or segmenter.
        settings: further fields of the configuration.

    Raises:
        ValueError: the model holds no pyramid, or several.
    """
    found = [(name, module) for name, module in plain_modules(model) if isinstance(module, Piip)]
    if len(found) != 1:
        raise ValueError(
            "interactions_config takes a pyramid of vision_peft.pyramid, or a model that holds one; found "
            f"{type(model).__name__}, which holds {len(found) or 'none'}"
        )
    path, pyramid = found[0]
    branches = [f"{path}.branch{j}".lstrip(".") for j in range(1, len(pyramid.layout.sizes) + 1)]
    heads = head_names(model)
    left = tuple(f"{name}." for name in [*heads, *branches])
    norms = [n for n, m in plain_modules(model) if isinstance(m, _BatchNorm) and not f"{n}.".startswith(left)]
    owners = [name for name, _ in tensor_owners(model) if name not in norms and not f"{name}.".startswith(left)]
    raw = [name for name in raw_parameters(model, [*owners, *norms]) if not name.startswith(left)]
    return FullConfig(target_modules=owners, modules_to_save=[*heads, *norms, *raw], **settings)
