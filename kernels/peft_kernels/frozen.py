"""Frozen modules beside trainable ones: a linear or convolution layer that keeps nothing of its input for backward.

Stock convolution keeps its input for the gradient of a weight that is never trained; under a trainable bias, scale or
neighbour that is most of a step's memory.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from peft_kernels.ops import frozen_conv, frozen_linear

_CONVOLUTIONS = (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)


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
