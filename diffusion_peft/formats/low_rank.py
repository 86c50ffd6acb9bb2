"""Low-rank changes of a denoiser's layers, apart from any program's names: tensors by layer, and what scales them.

PEFT, LyCORIS, sd-scripts, ComfyUI and diffusers hold the same factors under different names:

    LoRA  ΔW = s B A              DoRA  W + ΔW ↦ m (W + s B A) / ‖W + s B A‖, one magnitude m an output row
    LoHa  ΔW = s (A₁ B₁) ⊙ (A₂ B₂)
    LoKr  ΔW = s W₁ ⊗ W₂          either factor whole or as a product

In PEFT s comes from the configuration (alpha ÷ r, or ÷ √r), in the other programs from an ``alpha`` beside the factors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from peft import PeftConfig
from peft.utils.other import get_pattern_key
from torch import Tensor

from peft_kernels.adapter_formats import recognise

LORA, LOHA, LOKR = "LORA", "LOHA", "LOKR"
MAGNITUDE = "lora_magnitude_vector"
# The parts of a layer by PEFT's names.
PARTS = {
    LORA: ("lora_A", "lora_B", MAGNITUDE),
    LOHA: ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    LOKR: ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
}
# Starts of LoRA that leave the base model as it is; the others (PiSSA, OLoRA, ...) take their part out of its weights.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


class NoFormError(ValueError):
    """The adapter has no exact form in the format that was asked for."""

    exit_code = 1


@dataclass(frozen=True)
class LowRank:
    """Low-rank changes of layers.

    Attributes:
        kind: a key of `PARTS`.
        layers: tensors by the layer's name in the model and by part.
        scales: the factor s of each layer.
    """

    kind: str
    layers: dict[str, dict[str, Tensor]]
    scales: dict[str, float]

    @property
    def dora(self) -> bool:
        """Whether layers hold magnitudes."""
        return any(MAGNITUDE in parts for parts in self.layers.values())

    def rank(self, layer: str) -> int | None:
        """The rank of a layer's factors; ``None`` where none of them is a product."""
        parts = self.layers[layer]
        for name in ("lora_A", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
            if name in parts:
                return parts[name].shape[0]
        return None


def from_peft(config: PeftConfig, tensors: Mapping[str, Tensor]) -> LowRank:
    """The low-rank changes in an adapter of PEFT's.

    Args:
        config: its configuration.
        tensors: its tensors by their keys in the file.

    Raises:
        NoFormError: it is none, or trains something beside them; the reason is told.
    """
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind not in PARTS:
        raise NoFormError("the format holds LoRA, LoHa and LoKr alone")
    found = recognise(tensors)
    if found.full:
        raise NoFormError(f"the adapter also trains {min(found.full)!r} in full, which the format has no place for")
    layers = {
        layer: {part: tensors[key] for part, key in sorted(parts.items())} for layer, parts in found.layers.items()
    }
    strange = sorted({part for parts in layers.values() for part in parts if part not in PARTS[kind]})
    if strange:
        raise NoFormError(f"the format has no place for {strange[0]!r}")
    if kind == LORA:
        _refuse_variants(config)
    return LowRank(kind, layers, {layer: scale_of(config, layer) for layer in layers})


def _refuse_variants(config: Any) -> None:
    start = config.init_lora_weights
    if start not in _PLAIN_STARTS:
        raise NoFormError(
            f"{start} takes the adapter's start out of the base model's weights: save it as plain LoRA with PEFT's "
            "`save_pretrained(..., path_initial_model_for_weight_conversion=...)`"
        )
    for field in fields(config):
        variant = field.metadata.get("is_lora_variant") and field.name != "use_dora"
        if (variant or field.name == "layer_replication") and getattr(config, field.name):
            raise NoFormError(f"the format has no {field.name}")


def scale_of(config: Any, layer: str) -> float:
    """The factor by which PEFT multiplies a layer's change under ``config``."""

    def of(pattern: Mapping[str, float] | None, default: float) -> float:
        pattern = pattern or {}
        return pattern.get(get_pattern_key(list(pattern), layer), default)

    rank = of(config.rank_pattern, config.r)
    alpha = of(config.alpha_pattern, config.lora_alpha if hasattr(config, "lora_alpha") else config.alpha)
    return alpha / (math.sqrt(rank) if getattr(config, "use_rslora", False) else rank)
