"""Tensors owned by any module, the root included: class tokens, position embeddings, layer scales, separate biases.

Such a tensor belongs to no module whose call could be replaced. A child layer in its owner holds the trained copies and
puts the one in force into the owner's instance dictionary, where attribute look-up finds it before the parameter: the
owner's class and its parameters stay as they are, and every method of the owner sees the change.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from peft_kernels.calls import flat_name, get_tensor
from peft_kernels.entrances import GuardedEntrances
from peft_kernels.reparam import Reparam

CHILD = "adapted_tensors"


class TrainedTensors(Reparam):
    """Trained copies of some tensors of a module: the adapter of full fine-tuning, BitFit and raw parameters.

    The change it stands for is ``trained − base``, so that several adapters add up and a scale interpolates.
    """

    recompute = False

    def __init__(self, base: nn.Module, names: Iterable[str], init_weights: bool = True) -> None:
        super().__init__()
        self.tensors = tuple(names)
        for name in self.tensors:
            source = get_tensor(base, name)
            assert source is not None, name
            trained = source.detach().clone()
            if not init_weights:
                trained += torch.randn_like(trained) * (0.1 + trained.abs())
            self.register_parameter(flat_name(name), nn.Parameter(trained))

    def trained(self, name: str) -> Tensor:
        """The trained copy of the tensor ``name``."""
        return self.get_parameter(flat_name(name))

    def delta(self, name: str, tensor: Tensor) -> Tensor:
        return self.trained(name) - tensor

    def effective(self, name: str, tensor: Tensor | None) -> Tensor:
        return self.trained(name)


class OwnedTensors(nn.Module, BaseTunerLayer):
    """The adapters of raw parameters of the module ``owner``, whose child `CHILD` it becomes."""

    other_param_names = ("scaling",)
    in_features = out_features = None

    def __init__(self, owner: nn.Module, prefix: str) -> None:
        super().__init__()
        self.adapter_layer_names = (f"{prefix}adapter",)
        self.add_module(f"{prefix}adapter", nn.ModuleDict())
        self.scaling: dict[str, float] = {}
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter: str | list[str] = []
        self._originals: dict[str, Tensor] = {}
        self._owner = (owner,)  # in a tuple: the owner is no child of its child
        owner.add_module(CHILD, self)
        owner.register_forward_pre_hook(self._before_forward)
        owner.register_forward_hook(self._after_forward, always_call=True)
        self._entrances = GuardedEntrances(owner, self._enter)
        self.register_load_state_dict_post_hook(_refresh_after_load)

    @property
    def adapters(self) -> nn.ModuleDict:
        """The adapters by name."""
        return cast(nn.ModuleDict, self._modules[self.adapter_layer_names[0]])

    @property
    def owner(self) -> nn.Module:
        """The module whose parameters are replaced."""
        return self._owner[0]

    def get_base_layer(self) -> nn.Module:
        return self.owner

    def add_adapter(self, name: str, adapter: TrainedTensors, active: list[str], inference_mode: bool = False) -> None:
        """Add (or replace) the named trained copies."""
        self.adapters[name] = adapter
        self.scaling[name] = 1.0
        self.set_adapter(active, inference_mode=inference_mode)

    # --- which tensor is in force ----------------------------------------------------------------------------------
    def _running(self, name: str) -> list[tuple[TrainedTensors, float]]:
        if self._disable_adapters or self.merged_adapters:
            return []
        found = [(self.adapters[a], self.scaling[a]) for a in self.active_adapters if a in self.adapters]
        return [(cast(TrainedTensors, a), scale) for a, scale in found if name in a.tensors]  # type: ignore[operator]

    def effective(self, name: str) -> Tensor:
        """The tensor ``name`` of the owner as the active adapters leave it: their differences to the base add up."""
        base = self.owner._parameters[name]
        assert base is not None
        running = self._running(name)
        if len(running) == 1 and running[0][1] == 1:
            trained = running[0][0].trained(name)
            return trained if trained.dtype == base.dtype else trained.to(base.dtype)
        return torch.stack([base, *(scale * (a.trained(name) - base) for a, scale in running)]).sum(0).to(base.dtype)

    def names(self) -> list[str]:
        """All tensors of the owner that some adapter replaces."""
        return list(dict.fromkeys(n for a in self.adapters.values() for n in cast(TrainedTensors, a).tensors))

    def refresh(self, compute: bool = False) -> None:
        """Put the tensors in force into the owner; computed ones (several adapters, a scale) only for a forward."""
        attributes = self.owner.__dict__
        for name in self.names():
            tensor = self.effective(name) if self._running(name) else None
            if tensor is not None and (compute or isinstance(tensor, nn.Parameter)):
                if attributes.get(name) is not tensor:
                    attributes[name] = tensor
            else:
                attributes.pop(name, None)

    def _before_forward(self, owner: nn.Module, args: Any) -> None:
        self.refresh(compute=True)

    def _after_forward(self, owner: nn.Module, args: Any, result: Any) -> None:
        self.refresh()

    def _enter(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        owner = self.owner
        before = {n: owner.__dict__[n] for n in self.names() if n in owner.__dict__}
        self.refresh(compute=True)
        try:
            return call(*args, **kwargs)
        finally:
            for n in self.names():
                owner.__dict__.pop(n, None)
            owner.__dict__.update(before)

    # --- PEFT's lifecycle ------------------------------------------------------------------------------------------
    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        self.refresh()

    def enable_adapters(self, enabled: bool) -> None:
        super().enable_adapters(enabled)
        if not enabled and self.merged:
            self.unmerge()
        self.refresh()

    def delete_adapter(self, adapter_name: str) -> None:
        for name in self.names():
            self.owner.__dict__.pop(name, None)
        super().delete_adapter(adapter_name)
        self.refresh()

    def set_scale(self, adapter: str, scale: float) -> None:
        """Set the strength of one adapter: it interpolates between the base tensor (0) and the trained one (1)."""
        if adapter in self.scaling:
            self.scaling[adapter] = float(scale)
            self.refresh()

    def scale_layer(self, scale: float) -> None:
        """Multiply the strength of every active adapter by ``scale``."""
        for name in self.active_adapters:
            self.set_scale(name, self.scaling.get(name, 1.0) * scale)

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the strength of every active adapter by ``scale``; ``None`` resets it to 1."""
        for name in self.active_adapters:
            self.set_scale(name, 1.0 if not scale else self.scaling.get(name, 1.0) / scale)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write the named (default: active) adapters into the owner's parameters; `unmerge` restores them."""
        for adapter_name in check_adapters_to_merge(self, adapter_names):
            if adapter_name not in self.adapters:
                continue
            adapter, scale = cast(TrainedTensors, self.adapters[adapter_name]), self.scaling[adapter_name]
            for name in adapter.tensors:
                if safe_merge and not torch.isfinite(adapter.trained(name)).all():
                    raise ValueError(
                        f"NaNs detected in the merged weights. The adapter {adapter_name} seems to be broken "
                        f"(parameter {name!r})"
                    )
            for name in adapter.tensors:
                parameter = self.owner._parameters[name]
                assert parameter is not None
                original = self._originals.setdefault(name, parameter.detach().clone())
                parameter.data = (parameter + scale * (adapter.trained(name) - original)).to(parameter.dtype)
            self.merged_adapters.append(adapter_name)
        self.refresh()

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the original parameters back, bit for bit."""
        if not self.merged_adapters:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        for name, original in self._originals.items():
            cast(nn.Parameter, self.owner._parameters[name]).data = original
        self._originals = {}
        self.merged_adapters.clear()
        self.refresh()

    def detach(self) -> None:
        """Take the layer out of its owner, which is then as plain as before."""
        owner = self.owner
        for name in self.names():
            owner.__dict__.pop(name, None)
        self._entrances.remove()
        for hooks in (owner._forward_pre_hooks, owner._forward_hooks):
            for key in [k for k, hook in hooks.items() if getattr(hook, "__self__", None) is self]:
                del hooks[key]
                owner._forward_hooks_always_called.pop(key, None)
        owner._modules.pop(CHILD, None)


def _refresh_after_load(layer: nn.Module, _: Any) -> None:
    cast(OwnedTensors, layer).refresh()
