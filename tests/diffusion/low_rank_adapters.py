"""Low-rank adapters of small denoisers, moved away from their start, as PEFT saves them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft import (
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PeftConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import Tensor, nn

from tests.diffusion.true_configs import predict, small

# Matrices, 1 × 1 and 3 × 3 convolutions, also those outside blocks; of transformers, projections that share a name.
UNET = [
    *("attn1.to_q", "attn2.to_out.0", "proj_in", "ff.net.0.proj", "conv1", "conv_shortcut", "time_emb_proj"),
    *("downsamplers.0.conv", "upsamplers.0.conv", "conv_in", "conv_out", "linear_1"),
]
TRANSFORMER = ["to_q", "to_out.0", "add_k_proj", "proj_out", "proj_mlp", "attn1.to_v"]
# Two levels have every kind of layer that four have.
_LEVELS = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
_FEWER: dict[str, dict[str, Any]] = {
    "sd15": _LEVELS,
    "sdxl": {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
        "attention_head_dim": (1, 2),
    },
}
CONFIGS: dict[str, Callable[[Any], PeftConfig]] = {
    "lora": lambda targets: LoraConfig(r=4, lora_alpha=6, target_modules=targets),
    "rank patterns": lambda targets: LoraConfig(
        r=4, lora_alpha=6, target_modules=targets, rank_pattern={"attn1.to_q|attn.to_q": 2, "proj_in": 3}
    ),
    "alpha patterns": lambda targets: LoraConfig(
        r=4, lora_alpha=6, target_modules=targets, alpha_pattern={"attn1.to_q|attn.to_q": 9, "conv1|proj_out": 5}
    ),
    "rslora": lambda targets: LoraConfig(r=4, lora_alpha=6, target_modules=targets, use_rslora=True),
    "dora": lambda targets: LoraConfig(r=4, lora_alpha=6, target_modules=targets, use_dora=True),
    "loha": lambda targets: LoHaConfig(r=4, alpha=6, target_modules=targets),
    "loha, Tucker": lambda targets: LoHaConfig(r=4, alpha=6, target_modules=targets, use_effective_conv2d=True),
    "lokr": lambda targets: LoKrConfig(r=1, alpha=3, target_modules=targets),
    "lokr, all products": lambda targets: LoKrConfig(
        r=1, alpha=3, target_modules=targets, decompose_both=True, use_effective_conv2d=True
    ),
    "lokr, whole factors": lambda targets: LoKrConfig(r=200, alpha=300, target_modules=targets),
}


def tiny(architecture: str) -> Any:
    """A small denoiser with fewer levels."""
    return small(architecture, **_FEWER.get(architecture, {}))


def targets(model: nn.Module) -> list[str]:
    """The layers that are adapted."""
    return UNET if type(model).__name__.startswith("UNet") else TRANSFORMER


def adapted(name: str, model: nn.Module, layers: list[str] | str | None = None) -> Any:
    """A copy of the model with such an adapter."""
    config = CONFIGS[name](layers or targets(model))
    found = get_peft_model(copy.deepcopy(model), config).eval()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return found


def saved(
    name: str, model: nn.Module, layers: list[str] | str | None = None
) -> tuple[PeftConfig, dict[str, Tensor], Any]:
    """Configuration, tensors and the adapted model."""
    found = adapted(name, model, layers)
    return found.peft_config["default"], get_peft_model_state_dict(found), found


def loaded(config: PeftConfig, tensors: Mapping[str, Tensor], model: nn.Module) -> Any:
    """A copy of the model with the adapter, none of whose tensors is left over."""
    found = get_peft_model(copy.deepcopy(model), config).eval()  # type: ignore[arg-type]
    assert get_peft_model_state_dict(found).keys() == tensors.keys()
    set_peft_model_state_dict(found, dict(tensors))
    return found


@torch.no_grad()
def output(architecture: str, model: Any) -> Tensor:
    """What the model predicts on a fixed batch."""
    return predict(architecture, model)
