"""SSF: scale and shift the features after every operation, ``y ← γ ⊙ y + β``.

Lian, Zhou, Feng, Wang: "Scaling & Shifting Your Features", NeurIPS 2022 (arXiv 2210.08823), Eq. 2. ``γ ~ N(1, 0.02²)``
and ``β ~ N(0, 0.02²)``, as in the authors' code, so the function changes a little at step 0; ``init_std=0`` starts at
the identity. After training it folds away (Eq. 4): ``W' = γ ⊙ W`` on output rows and ``b' = γ ⊙ b + β``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from peft_kernels.config import MethodConfig, choices, require
from peft_kernels.frozen import frozen_forward
from peft_kernels.registry import register
from peft_kernels.reparam import Reparam, ReparamLayer
from peft_kernels.slices import Rows
from peft_kernels.targets import default_targets, find_backbone, reads_own_weight
from peft_kernels.tuner import AdapterTuner


class ScaleShift(Reparam):
    """``γ`` and ``β`` of one site, both of shape ``[channels]``.

    Args:
        tensors: the base tensors it folds into; empty where there is nothing to fold into.
        shift: whether there is a ``β``.
        axis: the axis of the base weight along which channels lie.
    """

    additive = False
    recompute = False

    def __init__(self, tensors: tuple[str, ...], channels: int, std: float, shift: bool = True, axis: int = 0) -> None:
        super().__init__()
        self.tensors, self.axis = tensors, axis
        self.scale = nn.Parameter(torch.empty(channels).normal_(1.0, std))
        self.shift = nn.Parameter(torch.empty(channels).normal_(0.0, std)) if shift else None

    def at(self, strength: float = 1.0) -> tuple[Tensor, Tensor]:
        """``γ`` and ``β`` at a strength between the identity (0) and as trained (1)."""
        shift = self.shift if self.shift is not None else torch.zeros_like(self.scale)
        return (self.scale, shift) if strength == 1 else (1 + strength * (self.scale - 1), strength * shift)

    def effective(self, name: str, tensor: Tensor | None) -> Tensor:
        bias = name.endswith("bias")
        _, shift = self.at()
        if tensor is None:  # a missing bias is 0, a missing norm weight 1
            return shift if bias else self.scale
        if bias or self.tensors == ("weight",):  # an embedding has no bias to take the shift
            return self.scale * tensor + shift
        return self.scale.view(-1, *(1,) * (tensor.ndim - 1 if self.axis == 0 else 0)) * tensor


class SsfLayer(ReparamLayer):
    """A module whose output is scaled and shifted per channel; folds like any reparameterisation."""

    def adapted_forward(self, *args: Any, **kwargs: Any) -> Any:
        result = frozen_forward(self.base_layer, *args, **kwargs)
        y = result[0] if isinstance(result, tuple) else result
        for adapter, strength in self.running:
            assert isinstance(adapter, ScaleShift)
            scale, shift = adapter.at(strength)
            if channels_first(self.base_layer):
                scale, shift = (t.view(-1, *(1,) * (y.ndim - 2)) for t in (scale, shift))
            y = torch.addcmul(shift, y, scale).to(y.dtype)
        return (y, *result[1:]) if isinstance(result, tuple) else y

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        if not _folds_into(self.base_layer):
            raise NotImplementedError(
                f"SSF after a whole {type(self.base_layer).__name__} cannot be merged: it stands on the residual "
                "stream, where no linear operation takes it up; train with `last_site='foldable'` to merge"
            )
        super().merge(safe_merge, adapter_names)


def channels_first(module: nn.Module) -> bool:
    """Whether the module puts out channels in dimension 1 (convolutions, 2d norms) instead of the last."""
    if isinstance(module, nn.LayerNorm):
        return type(module).__name__.endswith("2d")
    kinds = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
    return any(isinstance(child, kinds) for child in module.modules())


def _folds_into(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, nn.MultiheadAttention):
        return ("out_proj.weight", "out_proj.bias")
    if isinstance(module, nn.Embedding):
        return ("weight",)
    has_weight = "weight" in module._parameters and "bias" in module._parameters
    return ("weight", "bias") if has_weight else ()


class SsfTuner(AdapterTuner):
    """Attaches SSF."""

    layer_cls = SsfLayer
    target_kind = "affine"

    def default_targets(self, config: SsfConfig, model: nn.Module) -> str:
        sites = default_targets(model, "affine")
        found = find_backbone(model)
        if found and found[2].block.startswith("stages"):  # ConvNeXt
            path = f"{found[0]}." if found[0] else ""
            last = rf"{path}head\.norm" if config.last_site == "foldable" else rf"{path}stages\.3"
            return f"{sites}|{last}"
        return sites

    def check_target(self, config: SsfConfig, key: str, base: nn.Module) -> None:
        if _channels(base) is None:
            raise ValueError(
                f"SSF cannot tell how many channels {key!r} ({type(base).__name__}) puts out: target its linear, "
                "convolution or norm layers"
            )

    def make_adapter(self, config: SsfConfig, key: str, base: nn.Module, rows: Rows | None) -> ScaleShift:
        channels = _channels(base)
        assert channels is not None
        # EVA, BEiT and Swin V2 read qkv.weight and add biases of their own: a shift there would never be seen.
        shift = not reads_own_weight(self.model, key)
        axis = -1 if isinstance(base, nn.Embedding) or hasattr(base, "nf") else 0  # nf: transformers' Conv1D, [in, out]
        return ScaleShift(_folds_into(base), channels, config.init_std if config.init_weights else 0.5, shift, axis)


def _channels(module: nn.Module) -> int | None:
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    for child in reversed(list(module.modules())):
        for name in ("out_features", "out_channels", "num_features", "num_channels", "embed_dim", "nf"):
            if isinstance(getattr(child, name, None), int):
                return getattr(child, name)
        if getattr(child, "normalized_shape", None):
            return child.normalized_shape[-1]  # type: ignore[index]
    return None


@register(
    "ssf",
    tuner=SsfTuner,
    prefix="ssf_",
    family="vision",
    summary="Scale and shift features after every operation; folds away",
    paper="Lian et al., NeurIPS 2022",
)
@dataclass
class SsfConfig(MethodConfig):
    """SSF: ``y ← γ ⊙ y + β`` after every operation.

    ViT-B/16: 205,824 parameters without the head (2 · (12 · 11 · C + 2 C), C = 768). Folds into the layer before it.

    Args:
        init_std: standard deviation of γ around 1 and β around 0 at the start (authors' code: 0.02; 0 is the identity).
        last_site: ConvNeXt only. ``"official"``: the output of the last stage, as published, which cannot be folded;
            ``"foldable"``: the head's norm right after it, which can.
    """

    init_std: float = field(default=0.02, metadata={"help": "Standard deviation of the start; 0 is the identity."})
    last_site: str = field(default="foldable", metadata={"help": "ConvNeXt: 'foldable' (head.norm) or 'official'."})

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.init_std >= 0, self, "init_std", "a number >= 0")
        choices(self, "last_site", ("foldable", "official"))
