"""Feature adapters: layers that change a module's activations, ``y = f(x) + g(x, f(x))``.

A nonlinear ``g`` stays beside the model and cannot merge; the layer says so instead of merging a part.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

from peft_kernels.layer import AdapterLayer


class Feature(nn.Module):
    """One adapter of a `FeatureLayer`."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The summand for the module's output ``y``, given its input ``x``."""
        raise NotImplementedError

    def why_no_merge(self) -> str:
        """The reason why the adapter cannot be merged into the module."""
        return "it is a function of the activations, not a change of weights"


class FeatureLayer(AdapterLayer):
    """A module to whose output adapters add functions of its input and output.

    Several adapters apply in their order of activation, each reading the output that the one before it left; a scale
    is a factor of the summand.
    """

    def adapted_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        result = self.base_layer(x, *args, **kwargs)
        y = result[0] if isinstance(result, tuple) else result
        for adapter, scale in self.running:
            dtype = next((p.dtype for p in adapter.parameters() if p.dtype.is_floating_point), y.dtype)
            summand = adapter(x.to(dtype) if x.is_floating_point() else x, y.to(dtype))
            y = y + (summand if scale == 1 else scale * summand).to(y.dtype)
        return (y, *result[1:]) if isinstance(result, tuple) else y

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        self._ask_to_be_called()

    def enable_adapters(self, enabled: bool) -> None:
        super().enable_adapters(enabled)
        self._ask_to_be_called()

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self._ask_to_be_called()

    def _ask_to_be_called(self) -> None:
        # torch's fused encoder layer reads its children's tensors instead of calling them, unless one has a hook.
        hooks = self._forward_pre_hooks
        present = [key for key, hook in hooks.items() if hook is _nothing]
        if self.running and not present:
            self.register_forward_pre_hook(_nothing)
        elif not self.running:
            for key in present:
                del hooks[key]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse, with the reason.

        Raises:
            NotImplementedError: always, when the layer has one of the named adapters.
        """
        for name in adapter_names if adapter_names is not None else self.active_adapters:
            if name in self.adapters:
                adapter = self.adapters[name]
                reason = adapter.why_no_merge() if isinstance(adapter, Feature) else type(adapter).__name__
                raise NotImplementedError(
                    f"adapter {name!r} cannot be merged: {reason}. Keep it attached, or `unload()` to drop it"
                )

    def unmerge(self) -> None:
        """Nothing is ever merged."""
        warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)


def _nothing(layer: nn.Module, args: Any) -> None:
    """A hook that changes nothing."""
