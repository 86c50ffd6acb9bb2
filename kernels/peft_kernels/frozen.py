"""Frozen modules beside trainable ones: a linear or convolution layer that keeps nothing of its input for backward.

Stock convolution keeps its input for the gradient of a weight that is never trained; under a trainable bias, scale or
neighbour that is most of a step's memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from peft_kernels.ops import frozen_conv, frozen_linear


class Forgetful(nn.modules.conv._ConvNd):
    """A convolution that `forget_inputs` was called on: while its weight is frozen, its input is dropped."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and plain_convolution(self, x):
            return frozen_conv(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)  # type: ignore[arg-type]
        return super().forward(x)


class _Conv1d(Forgetful, nn.Conv1d): ...


class _Conv2d(Forgetful, nn.Conv2d): ...


class _Conv3d(Forgetful, nn.Conv3d): ...


_FORGETFUL = {nn.Conv1d: _Conv1d, nn.Conv2d: _Conv2d, nn.Conv3d: _Conv3d}
_CONVOLUTIONS = (*(kind.forward for kind in _FORGETFUL), Forgetful.forward)


def forget_inputs(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Let the stock convolutions among ``modules`` keep nothing of their input; give those that did until now.

    They become instances of a subclass, as in torch's own parametrisation: names, tensors, hooks and outputs stay, and
    adapters of other methods go on calling them.
    """
    changed = [module for module in modules if type(module) in _FORGETFUL]
    for module in changed:
        module.__class__ = _FORGETFUL[type(module)]
    return changed


def remember_inputs(modules: Iterable[nn.Module]) -> None:
    """Undo `forget_inputs`."""
    stock = {forgetful: kind for kind, forgetful in _FORGETFUL.items()}
    for module in modules:
        module.__class__ = stock.get(type(module), type(module))


def plain_convolution(module: Any, x: Tensor) -> bool:
    """Whether the module is a stock convolution with zero padding in numbers, called with a batch of its own dtype."""
    return (
        type(module).forward in _CONVOLUTIONS
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and x.ndim == module.weight.ndim
    )


def frozen_forward(module: Any, *args: Any, bias: Tensor | None = None, **kwargs: Any) -> Any:
    """Call ``module`` with its weight frozen; ``bias`` takes the place of its own where it is given.

    Modules other than plain linear and convolution layers, and those with hooks, are called as they are.
    """
    hooked = module._forward_hooks or module._forward_pre_hooks
    own = bias if bias is not None else getattr(module, "bias", None)
    if len(args) == 1 and not kwargs and not hooked:
        (x,) = args
        if type(module).forward is nn.Linear.forward:
            return frozen_linear(x, module.weight, own)
        if plain_convolution(module, x):
            return frozen_conv(x, module.weight, own, module.stride, module.padding, module.dilation, module.groups)
    if bias is not None:
        raise TypeError(f"a bias can be given to linear and convolution layers; found {type(module).__name__}")
    return module(*args, **kwargs)
