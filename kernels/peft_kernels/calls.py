"""Calling a module with other tensors than its own, and reading and writing its tensors by dotted name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_kernels.frozen import Forgetful, frozen_forward, plain_convolution

HALF = (torch.float16, torch.bfloat16)


def get_tensor(module: nn.Module, name: str) -> Tensor | None:
    """The tensor ``name`` (dots reach into children) of a module, ``None`` if it is registered as absent."""
    path, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(path) if path else module, leaf)


def flat_name(name: str) -> str:
    """A dotted tensor name as a key of a `ModuleDict`, which takes no dots."""
    return name.replace(".", "_")


def write_tensor(module: nn.Module, name: str, value: Tensor | None) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path) if path else module
    present = getattr(owner, leaf)
    if value is None:
        owner.register_parameter(leaf, None)
    elif present is None:
        owner.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
    else:
        present.data = value.to(present.device)


def low_precision(delta: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor | float]:
    """``delta`` in the dtype the layer computes in, and the power of two that was taken out of it (float16 only)."""
    device = delta.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype
    if dtype == torch.bfloat16:
        return delta.to(dtype), 1.0
    top = delta.detach().abs().amax().float().clamp_min(torch.finfo(torch.float32).tiny)
    unit = torch.exp2(torch.ceil(torch.log2(top)))
    return (delta / unit).to(dtype), unit.to(dtype)


# Anything else goes through torch.func.functional_call.
def _linear(base: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias)


def _conv(base: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if weight is base.weight and bias is not None and plain_convolution(base, x):
        return frozen_forward(base, x, bias=bias)
    return base._conv_forward(x, weight, bias)


def _embedding(base: Any, x: Tensor, weight: Tensor, bias: None) -> Tensor:
    return F.embedding(x, weight, base.padding_idx, base.max_norm, base.norm_type, base.scale_grad_by_freq, base.sparse)


def _layer_norm(base: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return F.layer_norm(x, base.normalized_shape, weight, bias, base.eps)


def _group_norm(base: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return F.group_norm(x, base.num_groups, weight, bias, base.eps)


LINEAR_IN_WEIGHT: dict[Any, Callable[..., Tensor]] = {
    nn.Linear.forward: _linear,
    nn.Conv1d.forward: _conv,
    nn.Conv2d.forward: _conv,
    nn.Conv3d.forward: _conv,
    Forgetful.forward: _conv,
    nn.Embedding.forward: _embedding,
}
FORWARDS = {**LINEAR_IN_WEIGHT, nn.LayerNorm.forward: _layer_norm, nn.GroupNorm.forward: _group_norm}
