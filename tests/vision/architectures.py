"""timm architectures of the families with default targets: as published, and at sizes that train in milliseconds."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import timm
import torch
from torch import Tensor, nn

CLASSES, IMAGE = 3, 32
_VIT = {"img_size": IMAGE, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
_SWIN = {
    "img_size": IMAGE,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": (2, 1, 2),
    "num_heads": (2, 2, 2),
    "window_size": 4,
}
_CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (8, 12, 16, 20)}
_RESNET = {"layers": (1, 2, 1, 1), "channels": (8, 12, 16, 20)}

# Architecture → the settings that make it small.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": _VIT,
    "vit_small_patch14_reg4_dinov2": _VIT,  # register tokens, layer scale
    "vit_base_patch32_clip_224": _VIT,  # a norm before the blocks
    "vit_base_patch16_siglip_224": _VIT,  # attention pooling, no class token
    "vit_medium_patch16_gap_240": _VIT,  # average pooling, no biases in qkv
    "vit_base_patch16_rpn_224": _VIT,  # norms after the branches
    "deit_tiny_distilled_patch16_224": _VIT,  # two tokens, two classifiers
    "deit3_small_patch16_224": _VIT,
    "vit_small_patch16_dinov3": _VIT,  # rotary positions
    "eva02_tiny_patch14_224": _VIT,  # SwiGLU, reads qkv.weight itself
    "eva02_base_patch16_clip_224": _VIT,  # separate q, k, v, a norm in the MLP
    "eva_giant_patch14_224": _VIT,
    "beit_base_patch16_224": _VIT,  # q_bias and v_bias of its own
    "beitv2_base_patch16_224": _VIT,
    "swin_tiny_patch4_window7_224": _SWIN,
    "swin_s3_tiny_224": _SWIN,
    "swinv2_tiny_window8_256": _SWIN,  # cosine attention, reads qkv.weight itself
    "convnext_tiny": _CONVNEXT,
    "convnextv2_atto": _CONVNEXT,  # global response norm, convolutions in the MLP
    "convnext_nano_ols": _CONVNEXT,  # overlapping stem
    "resnet18": _RESNET,
    "resnet50": _RESNET,
    "resnet26d": _RESNET,  # average pooling before the shortcut
    "resnext50_32x4d": {**_RESNET, "cardinality": 4, "base_width": 32},  # grouped convolutions
    "seresnet50": _RESNET,  # channel attention
    "resnet50_gn": {**_RESNET, "channels": (32, 32, 32, 32)},  # group norms
}
WITHOUT_ATTENTION = tuple(name for name in ARCHITECTURES if name.startswith(("convnext", "resne", "seresnet")))
WITHOUT_ONE_SEQUENCE = (*WITHOUT_ATTENTION, *(name for name in ARCHITECTURES if name.startswith("swin")))


@cache
def _meta(architecture: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(architecture, num_classes=CLASSES)


def published(architecture: str) -> nn.Module:
    """The architecture at its published size, on the meta device."""
    return copy.deepcopy(_meta(architecture))


def small(architecture: str, **settings: Any) -> nn.Module:
    """A small model of the architecture in which no tensor is zero (a zero scale hides the gradients before it)."""
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=CLASSES, **{**ARCHITECTURES[architecture], **settings})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def images() -> Tensor:
    """A batch of six: with fewer, a rectified unit can be silent on all of them."""
    return torch.randn(6, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(1))
