"""Denoisers of well-known pipelines: as published, on the meta device, and small random ones of the same form.

The settings are those of the published ``config.json`` files; what is not named is diffusers' default there too. A
small one differs in widths and depths alone, so that every module has the name it has in the published one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import diffusers
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Architecture:
    """A denoiser.

    Attributes:
        model: the name of its class in diffusers.
        config: its published settings.
        parameters: how many parameters these make.
        small: the settings that make it small.
        inputs: the arguments of one call of the small one, without gradients.
    """

    model: str
    config: dict[str, Any]
    parameters: int
    small: dict[str, Any]
    inputs: Callable[[], dict[str, Any]] = field(repr=False)


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _unet_inputs() -> dict[str, Any]:
    return {"sample": _noise(2, 4, 8, 8), "timestep": torch.tensor([3, 7]), "encoder_hidden_states": _noise(2, 5, 12)}


def _sd_inputs() -> dict[str, Any]:
    return {**_unet_inputs(), "sample": _noise(2, 4, 16, 16)}  # 2 × 2 at the lowest level, so that attention chooses


def _sdxl_inputs() -> dict[str, Any]:
    conditions = {"text_embeds": _noise(2, 8), "time_ids": torch.arange(12).view(2, 6).float()}
    return {**_unet_inputs(), "added_cond_kwargs": conditions}


def _sd3_inputs() -> dict[str, Any]:
    return {
        "hidden_states": _noise(2, 4, 8, 8),
        "encoder_hidden_states": _noise(2, 5, 12),
        "pooled_projections": _noise(2, 10),
        "timestep": torch.tensor([3.0, 7.0]),
    }


def _flux_inputs() -> dict[str, Any]:
    return {
        "hidden_states": _noise(2, 16, 8),
        "encoder_hidden_states": _noise(2, 5, 12),
        "pooled_projections": _noise(2, 10),
        "timestep": torch.tensor([0.3, 0.7]),
        "guidance": torch.tensor([3.5, 3.5]),
        "img_ids": torch.stack([torch.zeros(16), torch.arange(16) // 4, torch.arange(16) % 4], -1),
        "txt_ids": torch.zeros(5, 3),
    }


def _dit_inputs() -> dict[str, Any]:
    return {"hidden_states": _noise(2, 4, 8, 8), "timestep": torch.tensor([3, 7]), "class_labels": torch.tensor([1, 2])}


def _pixart_inputs() -> dict[str, Any]:
    conditions = {"resolution": torch.full((2, 2), 8.0), "aspect_ratio": torch.ones(2, 1)}
    return {
        "hidden_states": _noise(2, 4, 8, 8),
        "encoder_hidden_states": _noise(2, 5, 12),
        "timestep": torch.tensor([3, 7]),
        "added_cond_kwargs": conditions,
    }


_SD = {
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
_SMALL_UNET = {"sample_size": 8, "norm_num_groups": 4, "cross_attention_dim": 12}
_SMALL_SD = {**_SMALL_UNET, "sample_size": 16, "block_out_channels": (8, 16, 16, 16), "layers_per_block": 1}

ARCHITECTURES: dict[str, Architecture] = {
    "sd15": Architecture(  # stable-diffusion-v1-5/stable-diffusion-v1-5, the same as CompVis/stable-diffusion-v1-4
        "UNet2DConditionModel",
        {**_SD, "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        859_520_964,
        {**_SMALL_SD, "attention_head_dim": 2},
        _sd_inputs,
    ),
    "sd2": Architecture(  # stabilityai/stable-diffusion-2 and -2-1
        "UNet2DConditionModel",
        {
            **_SD,
            "sample_size": 96,
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
        865_910_724,
        {**_SMALL_SD, "attention_head_dim": (1, 2, 2, 2)},
        _sd_inputs,
    ),
    "sdxl": Architecture(  # stabilityai/stable-diffusion-xl-base-1.0
        "UNet2DConditionModel",
        {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "layers_per_block": 2,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        2_567_463_684,
        {
            **_SMALL_UNET,
            "block_out_channels": (8, 16, 16),
            "layers_per_block": 1,
            "transformer_layers_per_block": (1, 1, 2),
            "attention_head_dim": (1, 2, 2),
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 32,
        },
        _sdxl_inputs,
    ),
    "sd3": Architecture(  # stabilityai/stable-diffusion-3-medium-diffusers
        "SD3Transformer2DModel",
        {
            "sample_size": 128,
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 24,
            "num_attention_heads": 24,
            "attention_head_dim": 64,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 192,
        },
        2_028_328_000,
        {
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "joint_attention_dim": 12,
            "caption_projection_dim": 16,
            "pooled_projection_dim": 10,
            "pos_embed_max_size": 8,
        },
        _sd3_inputs,
    ),
    "flux": Architecture(  # black-forest-labs/FLUX.1-dev
        "FluxTransformer2DModel",
        {
            "patch_size": 1,
            "in_channels": 64,
            "num_layers": 19,
            "num_single_layers": 38,
            "num_attention_heads": 24,
            "attention_head_dim": 128,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "guidance_embeds": True,
        },
        11_901_408_320,
        {
            "in_channels": 8,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "joint_attention_dim": 12,
            "pooled_projection_dim": 10,
            "axes_dims_rope": (2, 2, 4),
        },
        _flux_inputs,
    ),
    "dit": Architecture(  # facebook/DiT-XL-2-256
        "DiTTransformer2DModel",
        {
            "sample_size": 32,
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 28,
            "num_attention_heads": 16,
            "attention_head_dim": 72,
            "attention_bias": True,
            "activation_fn": "gelu-approximate",
            "num_embeds_ada_norm": 1000,
            "norm_type": "ada_norm_zero",
            "norm_elementwise_affine": False,
        },
        749_826_464,
        {
            "sample_size": 8,
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_embeds_ada_norm": 10,
        },
        _dit_inputs,
    ),
    "pixart": Architecture(  # PixArt-alpha/PixArt-XL-2-1024-MS
        "PixArtTransformer2DModel",
        {
            "sample_size": 128,
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 28,
            "num_attention_heads": 16,
            "attention_head_dim": 72,
            "cross_attention_dim": 1152,
            "caption_channels": 4096,
            "attention_bias": True,
            "activation_fn": "gelu-approximate",
            "num_embeds_ada_norm": 1000,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "norm_eps": 1e-6,
        },
        611_349_152,
        {
            "sample_size": 8,
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "cross_attention_dim": 24,
            "caption_channels": 12,
            "use_additional_conditions": True,
        },
        _pixart_inputs,
    ),
}
# As DiffFit's parameters were counted: without the projection of captions, and for 512 pixels.
ARCHITECTURES["pixart_uncaptioned"] = replace(
    ARCHITECTURES["pixart"],
    config={**ARCHITECTURES["pixart"].config, "sample_size": 64, "caption_channels": None},
    parameters=604_808_096,
    small={**ARCHITECTURES["pixart"].small, "caption_channels": None, "use_additional_conditions": False},
    inputs=lambda: {**_pixart_inputs(), "encoder_hidden_states": _noise(2, 5, 24), "added_cond_kwargs": {}},
)


@cache
def _meta(name: str) -> nn.Module:
    architecture = ARCHITECTURES[name]
    with torch.device("meta"):
        return getattr(diffusers, architecture.model)(**architecture.config)


def published(name: str) -> Any:
    """The denoiser at its published size, on the meta device."""
    return copy.deepcopy(_meta(name))


def small(name: str, **settings: Any) -> Any:
    """A small denoiser of the same form in which no tensor is zero; the same bits at each call."""
    architecture = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = getattr(diffusers, architecture.model)(**{**architecture.config, **architecture.small, **settings})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def predict(name: str, model: Any, **kwargs: Any) -> Tensor:
    """One denoising step of the small model on a fixed batch of two."""
    return model(**ARCHITECTURES[name].inputs(), **kwargs).sample
