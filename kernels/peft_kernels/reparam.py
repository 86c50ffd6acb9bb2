"""Reparameterisation: adapters that replace tensors of a module by functions of them, ``W ← W + ΔW(θ)`` or ``W ← γ·W``.

They merge to nothing. In the forward pass neither the changed tensor nor the change stays alive for the backward pass:
both are computed again there (non-reentrant checkpointing; a method with a fused operation overrides `fused_forward`).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from peft_kernels.calls import FORWARDS, HALF, LINEAR_IN_WEIGHT, get_tensor, low_precision, write_tensor
from peft_kernels.layer import AdapterLayer


class Reparam(nn.Module):
    """One adapter of a `ReparamLayer`.

    Attributes:
        tensors: names of the base module's tensors that it changes, such as ``("weight", "bias")``.
        additive: whether the change is ``tensor + delta``; then `delta` is written, otherwise `effective`.
        recompute: whether the changed tensors are dropped after the forward pass and computed again for backward.
    """

    tensors: tuple[str, ...] = ("weight",)
    additive: bool = True
    recompute: bool = True

    def delta(self, name: str, tensor: Tensor) -> Tensor:
        """The summand for the tensor ``name``, of its shape (additive adapters)."""
        raise NotImplementedError

    def effective(self, name: str, tensor: Tensor | None) -> Tensor:
        """The tensor that takes the place of ``name``; ``tensor`` is ``None`` where the module has none (a bias)."""
        if tensor is None:
            raise ValueError(f"{type(self).__name__} changes {name!r}, which the module does not have")
        return tensor + self.delta(name, tensor)


class MatrixParts(Reparam):
    """An additive adapter made of one part per matrix, or per row block of a fused matrix.

    Args:
        parts: ``{key: (tensor name, first row, last row + 1, part)}``; every part is a module whose call with the base
            rows (shape ``[out, ...]``) returns their summand.
    """

    def __init__(self, parts: Mapping[str, tuple[str, int, int, nn.Module]]) -> None:
        super().__init__()
        self.places = {key: (name, start, stop) for key, (name, start, stop, _) in parts.items()}
        self.tensors = tuple(dict.fromkeys(name for name, _, _ in self.places.values()))
        for key, (_, _, _, part) in parts.items():
            self.add_module(key, part)

    def delta(self, name: str, tensor: Tensor) -> Tensor:
        blocks, row = [], 0
        for key, (owner, start, stop) in self.places.items():
            if owner != name:
                continue
            if start > row:
                blocks.append(tensor.new_zeros(()).expand(start - row, *tensor.shape[1:]))
            blocks.append(self.get_submodule(key)(tensor[start:stop]))
            row = stop
        if row < tensor.shape[0]:
            blocks.append(tensor.new_zeros(()).expand(tensor.shape[0] - row, *tensor.shape[1:]))
        return blocks[0] if len(blocks) == 1 else torch.cat([b.to(blocks[0].dtype) for b in blocks])


class ReparamLayer(AdapterLayer):
    """A module some of whose tensors are replaced by functions of them."""

    def __init__(self, base_layer: nn.Module, prefix: str) -> None:
        super().__init__(base_layer, prefix)
        self._originals: dict[str, Tensor | None] = {}

    # --- the effective tensors -------------------------------------------------------------------------------------
    def effective_tensor(self, name: str) -> Tensor | None:
        """The tensor ``name`` as the running adapters leave it, differentiable in their parameters."""
        return _changed(name, get_tensor(self.base_layer, name), self.running)

    def effective_tensors(self) -> dict[str, Tensor | None]:
        """All tensors that the running adapters change."""
        names = dict.fromkeys(name for adapter, _ in self.running for name in adapter.tensors)  # type: ignore[union-attr]
        return {name: self.effective_tensor(name) for name in names}

    @property
    def weight(self) -> Tensor:
        """The effective weight: models that read ``qkv.weight`` themselves (EVA, BEiT, Swin V2) train and adapt too."""
        return self._exposed("weight")

    @property
    def bias(self) -> Tensor:
        """The effective bias, ``None`` where there is none."""
        return self._exposed("bias")

    def _exposed(self, name: str) -> Any:
        if name not in self.base_layer._parameters and not hasattr(self.base_layer, name):
            raise AttributeError(f"{type(self.base_layer).__name__!r} object has no attribute {name!r}")
        return self.effective_tensor(name)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What the named adapter adds to ``weight`` at its present scale, in the adapter's dtype."""
        weight = get_tensor(self.base_layer, "weight")
        assert weight is not None
        change = self.adapters[adapter]
        assert isinstance(change, Reparam)
        scale = self.scaling[adapter]
        if "weight" not in change.tensors:
            return torch.zeros_like(weight)
        if change.additive:
            return scale * change.delta("weight", weight)
        return scale * (change.effective("weight", weight) - weight)

    def __getattr__(self, name: str) -> Any:
        # torch's fused encoder layer reads the tensors of an attention module instead of calling it; told that the
        # projections are separate, it calls.
        if name == "_qkv_same_embed_dim" and self.running:
            return False
        value = super().__getattr__(name)
        if isinstance(value, nn.Parameter) and name in self.base_layer._parameters:
            return self.effective_tensor(name)  # `in_proj_weight` and other names, as `weight` and `bias`
        return value

    # --- forward ---------------------------------------------------------------------------------------------------
    def adapted_forward(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and any(a.recompute for a, _ in self.running):  # type: ignore[union-attr]
            # Only a module outside the table may draw random numbers (dropout inside an attention module).
            random = type(self.base_layer).forward not in FORWARDS
            return checkpoint(self._plain_forward, *args, use_reentrant=False, preserve_rng_state=random, **kwargs)
        return self._plain_forward(*args, **kwargs)

    def _plain_forward(self, *args: Any, **kwargs: Any) -> Any:
        base: Any = self.base_layer
        call = FORWARDS.get(type(base).forward)
        if call is None or base._forward_hooks or base._forward_pre_hooks:
            changed = {name: t for name, t in self.effective_tensors().items() if t is not None}
            return functional_call(base, changed, args, kwargs)
        if self._branch_pays():
            delta = sum(s * a.delta("weight", base.weight) for a, s in self.running)  # type: ignore[union-attr]
            branch, unit = low_precision(delta, base.weight.dtype)
            return base(*args, **kwargs) + call(base, *args, weight=branch, bias=None, **kwargs) * unit
        tensors = {"weight": base.weight, "bias": base._parameters.get("bias"), **self.effective_tensors()}
        return call(base, *args, **tensors, **kwargs)

    def _branch_pays(self) -> bool:
        """In half precision ``W + ΔW`` would round small changes away: ``f(x; W) + f(x; ΔW)`` keeps them."""
        base: Any = self.base_layer
        if type(base).forward not in LINEAR_IN_WEIGHT or not isinstance(base.weight, Tensor):
            return False
        device = base.weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else base.weight.dtype
        return dtype in HALF and all(a.additive and a.tensors == ("weight",) for a, _ in self.running)  # type: ignore[union-attr]

    # --- merging ---------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write the named (default: active) adapters into the base tensors; the originals are kept for `unmerge`.

        Raises:
            ValueError: with ``safe_merge``, when a merged tensor would hold NaN or infinity; nothing is changed then.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.adapters:
                continue
            # Always from the originals: a change may depend on the tensor it is applied to.
            chain = [(self.adapters[n], self.scaling[n]) for n in (*self.merged_adapters, name)]
            names = self.adapters[name].tensors
            bases = {t: self._originals.get(t, get_tensor(self.base_layer, t)) for t in names}  # type: ignore[union-attr]
            merged = {t: _changed(t, base, chain) for t, base in bases.items()}
            for tensor_name, tensor in merged.items():
                if safe_merge and tensor is not None and not torch.isfinite(tensor).all():
                    raise ValueError(
                        f"NaNs detected in the merged weights. The adapter {name} seems to be broken "
                        f"(tensor {tensor_name!r})"
                    )
                _warn_of_rounding(name, tensor_name, bases[tensor_name], tensor, chain)
            for tensor_name, tensor in merged.items():
                base = bases[tensor_name]
                self._originals.setdefault(tensor_name, None if base is None else base.detach().clone())
                assert tensor is not None
                owned = isinstance(tensor, nn.Parameter)  # by the adapter, which may go on training
                write_tensor(self.base_layer, tensor_name, tensor.clone() if owned else tensor)
            self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the original tensors back, bit for bit."""
        if not self.merged_adapters:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        for name, original in self._originals.items():
            write_tensor(self.base_layer, name, original)
        self._originals = {}
        self.merged_adapters.clear()


def _changed(name: str, base: Tensor | None, running: list[tuple[nn.Module, float]]) -> Tensor | None:
    """The base tensor ``name`` after the given adapters: summands add up, other changes apply in their order."""
    tensor, first = base, True
    for adapter, scale in running:
        assert isinstance(adapter, Reparam)
        if name not in adapter.tensors or (scale == 0 and base is not None):
            continue
        if base is not None and adapter.additive and not (first and scale == 1):
            assert tensor is not None
            tensor = tensor + scale * adapter.delta(name, base)
        else:
            changed = adapter.effective(name, tensor)
            start = tensor if tensor is not None else _absent(name, changed)
            tensor = changed if scale == 1 else start + scale * (changed - start)
        first = False
    return tensor.to(base.dtype) if tensor is not None and base is not None else tensor


def _absent(name: str, like: Tensor) -> Tensor:
    """What a tensor that the module does not have stands for: no bias is 0, no (norm's) weight 1."""
    return torch.zeros_like(like) if name.rpartition(".")[2].endswith("bias") else torch.ones_like(like)


def _warn_of_rounding(
    adapter: str, name: str, base: Tensor | None, merged: Tensor | None, chain: list[tuple[nn.Module, float]]
) -> None:
    """Warn when half precision cannot hold the change: most of ``merged − base`` differs from what was asked for."""
    if base is None or merged is None or base.dtype not in HALF or base.shape != merged.shape:
        return
    wanted = _changed(name, base.float(), chain)
    assert wanted is not None
    wanted = wanted - base.float()
    lost = torch.linalg.vector_norm(merged.float() - base.float() - wanted)
    if lost > 0.5 * torch.linalg.vector_norm(wanted):
        warnings.warn(
            f"Merging adapter {adapter!r} into {str(base.dtype).removeprefix('torch.')} rounds away most of its change "
            f"of {name!r}: load the base model in float32, merge, and cast the result once",
            stacklevel=3,
        )
