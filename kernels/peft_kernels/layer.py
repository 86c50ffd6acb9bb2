"""The layer every method shares: one wrapped module and its named adapters.

PEFT drives it (switching, enabling, deleting, merging, saving); the two ways of changing a module's function stand in
`reparam` (its tensors) and `feature` (its activations).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


class AdapterLayer(nn.Module, BaseTunerLayer):
    """A base module with any number of named adapters.

    Args:
        base_layer: the module that is wrapped; it stays frozen and untouched.
        prefix: the method's unique prefix; adapters live in the ``ModuleDict`` ``<prefix>adapter``.

    Attributes the base module has and this layer has not are read from the base module, so that code which asks a
    wrapped module for ``kernel_size`` or ``num_heads`` still finds it.
    """

    other_param_names = ("scaling",)

    def __init__(self, base_layer: nn.Module, prefix: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.adapter_layer_names = (f"{prefix}adapter",)
        self.add_module(f"{prefix}adapter", nn.ModuleDict())
        self.scaling: dict[str, float] = {}
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter: str | list[str] = []
        self.in_features, self.out_features = features_of(base_layer)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer" or name.startswith("__"):
                raise
            return getattr(super().__getattr__("base_layer"), name)

    @property
    def adapters(self) -> nn.ModuleDict:
        """The adapters by name."""
        return cast(nn.ModuleDict, self._modules[self.adapter_layer_names[0]])

    @property
    def running(self) -> list[tuple[nn.Module, float]]:
        """The adapters that take part in the forward pass, each with its scale, in order of activation."""
        if self._disable_adapters or self.merged_adapters:
            return []
        adapters = self.adapters
        return [(adapters[name], self.scaling[name]) for name in self.active_adapters if name in adapters]

    def add_adapter(
        self,
        name: str,
        adapter: nn.Module,
        active: list[str],
        inference_mode: bool = False,
        like: torch.Tensor | None = None,
    ) -> None:
        """Put ``adapter`` (one of the same name is replaced) on the base layer's device, in its dtype.

        A base layer without parameters has neither; then they are those of ``like``.
        """
        reference = next(self.base_layer.parameters(), like)
        on_meta = any(parameter.is_meta for parameter in adapter.parameters())
        if reference is not None and not on_meta:
            dtype = reference.dtype if reference.dtype.is_floating_point else None
            adapter = adapter.to(device=reference.device, dtype=dtype)
        self.adapters[name] = adapter.train(self.training)
        self.scaling[name] = 1.0
        self.set_adapter(active, inference_mode=inference_mode)

    # What a scale means is the method's: a factor where the change is added, an interpolation to the base elsewhere.
    def set_scale(self, adapter: str, scale: float) -> None:
        """Set the strength of one adapter: 0 is the base module, 1 the adapter as trained."""
        if adapter in self.scaling:
            self.scaling[adapter] = float(scale)

    def scale_layer(self, scale: float) -> None:
        """Multiply the strength of every active adapter by ``scale``."""
        for name in self.active_adapters:
            if name in self.scaling:
                self.scaling[name] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the strength of every active adapter by ``scale``; ``None`` resets it to 1."""
        for name in self.active_adapters:
            if name in self.scaling:
                self.scaling[name] = 1.0 if not scale else self.scaling[name] / scale

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._disable_adapters and self.merged:
            self.unmerge()
        if not self.running:
            return self.base_layer(*args, **kwargs)
        return self.adapted_forward(*args, **kwargs)

    def adapted_forward(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass with the running adapters (at least one)."""
        raise NotImplementedError

    def detach(self) -> None:
        """Take back what the layer has done to modules other than its own (hooks), before it is removed."""

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The base module without the layer around it, with the adapters merged if asked."""
        if merge:
            self.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        self.detach()
        return self.base_layer

    def extra_repr(self) -> str:
        scales = ", ".join(f"{name}×{scale:g}" for name, scale in self.scaling.items())
        return f"adapters=[{scales}]"


_SIZES = (
    (nn.Linear, "in_features", "out_features"),
    (nn.Embedding, "num_embeddings", "embedding_dim"),
    (nn.modules.conv._ConvNd, "in_channels", "out_channels"),
    (nn.GroupNorm, "num_channels", "num_channels"),
    (nn.modules.batchnorm._NormBase, "num_features", "num_features"),
    (nn.MultiheadAttention, "embed_dim", "embed_dim"),
)


def features_of(module: nn.Module) -> tuple[int | None, int | None]:
    """The sizes of a module's channel axis before and after it; ``None`` where the module does not tell."""
    for kind, before, after in _SIZES:
        if isinstance(module, kind):
            return getattr(module, before), getattr(module, after)
    shape: Any = getattr(module, "normalized_shape", None)
    if shape is not None:
        return shape[-1], shape[-1]
    weight: Any = getattr(module, "weight", None)
    if isinstance(weight, torch.Tensor) and weight.ndim >= 1:
        return weight.shape[-1], weight.shape[0]
    return getattr(module, "in_features", None), getattr(module, "out_features", None)
