"""Adapters beside a block's MLP: they read its input before its norm, and add to the block's sum behind its drop path.

    y₁ = x + DP(attn),    out = y₁ + DP(mlp(norm2 y₁)) + A(y₁)

Stochastic depth, which may drop the MLP for a sample, never drops them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from peft_kernels.feature import Feature, FeatureLayer


class Tap(Feature):
    """One adapter of a `TapLayer`."""

    def branch(self, z: Tensor) -> Tensor:
        """The summand, given the input of the MLP before its norm."""
        raise NotImplementedError


class TapLayer(FeatureLayer):
    """A block's ``norm2``: reads the MLP's input ``y1`` there and adds to the block's sum at its ``drop_path2``.

    Both ends lie in one call of the block, so that gradient checkpointing repeats them together.
    """

    def __init__(self, base_layer: nn.Module, prefix: str) -> None:
        super().__init__(base_layer, prefix)
        self.before_norm = False
        self._summand: list[Tensor] = []

    def connect(self, block: nn.Module, before_norm: bool = False) -> TapLayer:
        """Add what is read here to the output of ``block.drop_path2``; ``before_norm``: and
        to the norm's input."""
        self.before_norm = before_norm
        self._block = (block,)  # in a tuple: the block is no child of its norm
        block.drop_path2.register_forward_hook(self._add)  # type: ignore[union-attr]
        block.register_forward_hook(self._clear, always_call=True)
        return self

    def adapted_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        summand = torch.zeros_like(x)
        for adapter, scale in self.running:
            assert isinstance(adapter, Tap)
            dtype = next((p.dtype for p in adapter.parameters() if p.dtype.is_floating_point), x.dtype)
            read = x + summand if self.before_norm else x
            summand = summand + scale * self.branch(adapter, read.to(dtype)).to(x.dtype)
        self._summand = [summand]
        return self.base_layer(x + summand if self.before_norm else x, *args, **kwargs)

    def branch(self, adapter: Tap, z: Tensor) -> Tensor:
        """One adapter's summand."""
        return adapter.branch(z)

    def _add(self, module: nn.Module, args: Any, y: Tensor) -> Tensor:
        return y + self._summand.pop() if self._summand else y

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_summand": []}  # a value in flight is no state

    def _clear(self, module: nn.Module, args: Any, y: Any) -> None:
        self._summand.clear()  # also after an error, or a recomputation that stopped before the end

    def detach(self) -> None:
        """Take the hooks out of the block again."""
        (block,) = self._block
        for module in (block, block.drop_path2):
            assert isinstance(module, nn.Module)
            for key in [k for k, hook in module._forward_hooks.items() if getattr(hook, "__self__", None) is self]:
                del module._forward_hooks[key]
                module._forward_hooks_always_called.pop(key, None)
