"""Models registered with timm; importing this package registers them."""

from vision_peft.models.fdconv import (
    fdconv_convnext_tiny,
    fdconv_resnet18,
    fdconv_resnet50,
    fdconv_resnet101,
    fdconv_swin_tiny,
)
from vision_peft.models.vit_mini import vit_mini

__all__ = [
    "fdconv_convnext_tiny",
    "fdconv_resnet18",
    "fdconv_resnet50",
    "fdconv_resnet101",
    "fdconv_swin_tiny",
    "vit_mini",
]
