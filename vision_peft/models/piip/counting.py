"""Multiplications of a forward pass, counted as the authors count them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn

from .attention import DeformableAttention
from .layout import Size


def macs(model: nn.Module, batch: int = 1, size: Size | None = None) -> dict[str, int]:
    """Multiply-accumulates of one forward pass: for each part (branch, interactions, ...), and in ``total``.

    Linear layers without and convolutions with their biases, two an element of a norm, ``2 n² d`` for an attention
    over n patches (class tokens are not counted), ``5 n K d`` for the samples of an interaction.

    Args:
        model: a pyramid, or a timm model to compare it with; it is run on zeros in evaluation mode, where it is, and on
            the meta device that computes nothing.
        batch: pictures.
        size: their height and width; by default what the model is made for.
    """
    counts: Counter[str] = Counter()
    whole: Any = model
    if size is None:
        layout = getattr(whole, "layout", None)
        size = layout.sizes[-1] if layout is not None else whole.default_cfg["input_size"][-2:]
    assert size is not None
    handles, training = [], [module for module in model.modules() if module.training]
    for name, module in model.named_modules():
        part = name.split(".")[0]
        prefix = getattr(getattr(model, part, None), "num_prefix_tokens", getattr(model, "num_prefix_tokens", 0))
        if isinstance(module, _COUNTED):
            handles.append(module.register_forward_hook(_hook(counts, part, prefix)))
    like = next(model.parameters())
    model.eval()
    try:
        with torch.no_grad():
            model(torch.zeros(batch, getattr(whole, "in_chans", 3), *size, device=like.device, dtype=like.dtype))
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    return {**dict(sorted(counts.items())), "total": counts.total()}


_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)
_COUNTED = (nn.Linear, nn.Conv2d, *_NORMS, Attention, DeformableAttention)


def _hook(counts: Counter[str], part: str, prefix: int) -> Callable[[Any, tuple[Any, ...], Tensor], None]:
    def count(module: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        counts[part] += _macs(module, inputs[0], output, prefix)

    return count


def _macs(module: Any, x: Tensor, y: Tensor, prefix: int) -> int:
    if isinstance(module, nn.Linear):
        return y.numel() * module.in_features
    if isinstance(module, nn.Conv2d):
        return y.numel() * (module.weight[0].numel() + (module.bias is not None))
    if isinstance(module, Attention):
        return 2 * len(x) * (x.shape[1] - prefix) ** 2 * x.shape[2]
    if isinstance(module, DeformableAttention):
        return 5 * len(x) * x.shape[1] * module.points * x.shape[2]
    return 2 * y.numel()
