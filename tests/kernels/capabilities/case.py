"""One cell's subject: a method on a layer type, and the models that the checks make of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from .layers import LayerType, Tiny
from .methods import Method

FIRST, SECOND = "default", "second"


@dataclass(frozen=True)
class Case:
    """A method on a layer type."""

    method: Method
    layer: LayerType

    def base(self) -> Tiny:
        """The plain model; the same bits at each call."""
        return self.layer.model()

    @property
    def x(self) -> Tensor:
        """An input batch."""
        return self.layer.inputs()

    def attach(self, model: nn.Module | None = None, **fields: Any) -> PeftModel:
        """A plain model (or the given one) with a new adapter."""
        model = model or self.base()
        torch.manual_seed(3)
        return quiet(get_peft_model, model, self.method.config(self.layer, **fields), FIRST)

    def trained(self, *names: str, model: nn.Module | None = None) -> PeftModel:
        """A model with an adapter per name, each moved away from its start as training would; the first is active."""
        adapted = self.attach(model)
        for name in names or (FIRST,):
            if name != FIRST:
                quiet(adapted.add_adapter, name, self.method.config(self.layer))
            move(adapted, name)
        return adapted.eval()


def quiet(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call without the warnings of tiny layers and switched adapters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


def adapter_parameters(model: nn.Module, name: str = FIRST) -> dict[str, nn.Parameter]:
    """The parameters of the named adapter."""
    return {key: parameter for key, parameter in model.named_parameters() if name in key.split(".")}


@torch.no_grad()
def move(model: nn.Module, name: str = FIRST) -> None:
    """Move the named adapter's parameters at random, differently for each name."""
    generator = torch.Generator().manual_seed(len(name))
    for parameter in adapter_parameters(model, name).values():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator).to(parameter))


@torch.no_grad()
def run(model: nn.Module, x: Tensor) -> Tensor:
    """The output without a graph."""
    return model(x)


def gradients(model: nn.Module, x: Tensor, forward: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
    """The gradients of a step at every trainable parameter; ``forward`` runs the model in another way."""
    model.zero_grad(set_to_none=True)
    (forward or model)(x).square().sum().backward()
    return {
        name: parameter.grad.clone() if parameter.grad is not None else torch.zeros(())
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def tuner_layers(model: nn.Module) -> list[Any]:
    """The adapter layers of ``layer``, the module that is adapted."""
    return [module for module in model.modules() if hasattr(module, "adapter_layer_names") and hasattr(module, "merge")]


def close(found: Tensor, expected: Tensor, rtol: float = 1e-5, atol: float = 1e-5) -> None:
    """Assert closeness, in float32."""
    torch.testing.assert_close(found.float(), expected.float(), rtol=rtol, atol=atol)


def same(found: Tensor, expected: Tensor) -> None:
    """Assert equal bits."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def differs(one: Tensor, other: Tensor, by: float = 1e-3) -> None:
    """Assert that something changed."""
    distance = (one.float() - other.float()).abs().max().item()
    assert distance > by, f"the outputs differ by {distance:.1e} only"


def state(model: nn.Module) -> dict[str, Any]:
    """All that attaching may change: types, tensors, flags, hooks and instance attributes of every module."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        found[name] = (
            type(module),
            module.training,
            sorted(key for key in module.__dict__),
            len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._state_dict_hooks),
        )
    tensors = {n: (p.requires_grad, p.dtype, p.tolist()) for n, p in model.named_parameters()}
    buffers = {n: b.tolist() for n, b in model.named_buffers()}
    return {"modules": found, "parameters": tensors, "buffers": buffers}
