"""diffusers' perceptron around layers with DiffFit: it keeps its input for backward, nothing of the hidden width."""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers.models.activations import GEGLU, GELU
from diffusers.models.attention import FeedForward
from torch import Tensor, nn

from diffusion_peft.methods.difffit.adapter import FitLayer
from peft_kernels.ops import frozen_mlp

Parts = tuple[Tensor, Tensor | None, Tensor | None]


class ForgetfulFeedForward(FeedForward):
    """A perceptron that `forget_hidden` was called on; what is no stock layer or DiffFit's in it runs as it did."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        activation = None if args or kwargs or not torch.is_grad_enabled() else _activation(self)
        first = second = None
        if activation is not None:
            first, second = _parts(self.net[0].proj), _parts(self.net[2])  # type: ignore[union-attr]
        if activation is None or first is None or second is None:
            return super().forward(hidden_states, *args, **kwargs)
        return frozen_mlp(hidden_states, *first, *second, activation)


def forget_hidden(module: nn.Module) -> bool:
    """Let a stock perceptron of diffusers drop its hidden tensors; whether it is one, and did not do so before.

    It becomes an instance of a subclass, as `peft_kernels.frozen.forget_inputs` does it: names, tensors, hooks and
    outputs stay.
    """
    stock = type(module) is FeedForward
    if stock:
        module.__class__ = ForgetfulFeedForward
    return stock


def remember_hidden(module: nn.Module) -> None:
    """Undo `forget_hidden`."""
    if type(module) is ForgetfulFeedForward:
        cast(Any, module).__class__ = FeedForward


def _activation(module: FeedForward) -> str | None:
    """The activation, by its name for `frozen_mlp`; ``None`` where something else stands between the two layers."""
    if len(module.net) != 3 or any(map(_hooked, module.net[:2])):
        return None
    before, dropout, _ = module.net
    if dropout.training and getattr(dropout, "p", 1):
        return None
    if type(before) is GEGLU:
        return "geglu"
    if type(before) is GELU:
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(before.approximate)
    return None


def _parts(layer: Any) -> Parts | None:
    """``W``, b and γ of a linear layer with a frozen weight; ``None`` where it is another, or calls something else."""
    if isinstance(layer, FitLayer):
        return None if _hooked(layer) or _hooked(layer.base_layer) else layer.linear_parts()
    if type(layer) is not nn.Linear or _hooked(layer) or layer.weight.requires_grad:
        return None
    return layer.weight, layer.bias, None


def _hooked(module: nn.Module) -> bool:
    """Whether a call does more than the class says."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
