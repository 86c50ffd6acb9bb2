"""Pyramids small enough for tests: vision transformers of timm with few and narrow blocks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import vision_peft as vp

SIZES = (32, 48, 64)
WIDTHS = (64, 32, 32)


def branches(sizes: Sequence[Any] = SIZES, widths: Sequence[int] = WIDTHS, depth: int = 3, **own: Any) -> list[Any]:
    """Branch specifications, the widest first."""
    return [
        ("vit_tiny_patch16_224", size, {"embed_dim": width, "depth": depth, "num_heads": 2, **own})
        for size, width in zip(sizes, widths, strict=True)
    ]


def tiny(given: Sequence[Any] | None = None, seed: int = 0, **settings: Any) -> Any:
    """A new pyramid with five classes, in evaluation mode."""
    torch.manual_seed(seed)
    defaults: dict[str, Any] = {"num_classes": 5, "n_interactions": 3, "deform_num_heads": 4}
    return vp.pyramid(given or branches(), **{**defaults, **settings}).eval()


def opened(model: Any) -> Any:
    """The model with gates that let something through."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma") and name.startswith("interactions"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def pictures(*size: int, count: int = 2) -> Tensor:
    """Random pictures, of the last branch's size unless told."""
    return torch.randn(count, 3, *(size or (64, 64)), generator=torch.Generator().manual_seed(2))
