"""diffusers' conditional UNet with a few channels, and the methods as they are put on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft import PeftConfig
from torch import Tensor, nn

import vision_peft as vp

CONFIGS: dict[str, Callable[[], PeftConfig]] = {
    "snell": lambda: vp.SnellConfig(r=4, sparsity=0.3, scale=1.0, target_modules=["to_q", "to_v"], modules_to_save=[]),
    "ssf": lambda: vp.SsfConfig(target_modules=["to_q", "to_out.0", "conv1"], modules_to_save=[]),
    "bitfit": lambda: vp.BitFitConfig(target_modules=["to_out.0", "conv1"], modules_to_save=[]),
    "adapter_plus": lambda: vp.AdapterPlusConfig(r=2, target_modules=["attn1", "attn2"], modules_to_save=[]),
}


def unet() -> Any:
    """The model; the same bits at each call."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # type: ignore[return-value]


@torch.no_grad()
def run(model: Any, **kwargs: Any) -> Tensor:
    """A denoising step on a fixed batch."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    prompt = torch.randn(2, 5, 12, generator=generator)
    return model(latents, torch.tensor([3, 7]), prompt, **kwargs).sample


@torch.no_grad()
def move(model: nn.Module, adapter: str) -> None:
    """Move the adapter's parameters away from their start, as training would."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if adapter in name.split("."):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def adapted(name: str, adapter: str = "one") -> Any:
    """The UNet with a moved adapter of the method."""
    model = unet()
    model.add_adapter(CONFIGS[name](), adapter)
    move(model, adapter)
    return model.eval()
