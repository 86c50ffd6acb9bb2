"""A module with a method attached the way a user attaches it, and its parameters set to given values."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from peft_kernels.layer import AdapterLayer


class Attached:
    """A module in evaluation mode with one adapter.

    Args:
        module: the base module; it is changed in place.
        config: the method's configuration.
    """

    def __init__(self, module: nn.Module, config: Any) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the .* adapter of .* more than the")  # the cases are tiny
            self.model: PeftModel = get_peft_model(module, config)  # type: ignore[arg-type]
        self.model.eval()
        prefix = "base_model.model."
        self.adapters: dict[str, nn.Module] = {
            name.removeprefix(prefix): layer.adapters["default"]
            for name, layer in self.model.named_modules()
            if isinstance(layer, AdapterLayer)
        }

    def parameter(self, site: str, name: str) -> nn.Parameter:
        """The parameter ``name`` of the adapter at the module ``site``."""
        return self.adapters[site].get_parameter(name)

    def merged(self) -> nn.Module:
        """The base module with the adapter merged; the adapter is gone."""
        return self.model.merge_and_unload()  # type: ignore[operator]


def assign(values: Mapping[nn.Parameter, Tensor]) -> None:
    """Write values into parameters; a shape that does not fit raises.

    Raises:
        ValueError: a value has another shape than its parameter.
    """
    for parameter, value in values.items():
        if parameter.shape != value.shape or parameter.dtype != value.dtype:
            found, expected = [(tuple(t.shape), t.dtype) for t in (parameter, value)]
            raise ValueError(f"the adapter's parameter is {found}, the file's {expected}")
        with torch.no_grad():
            parameter.copy_(value)


def probed(y: Tensor, probe: Tensor, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``grad.<name>`` of ``sum(y * probe)`` for every wanted tensor."""
    found = torch.autograd.grad((y * probe).sum(), list(wanted.values()))
    return {f"grad.{name}": gradient for name, gradient in zip(wanted, found, strict=True)}
