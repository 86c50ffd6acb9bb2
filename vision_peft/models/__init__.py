"""Models registered with timm; importing this package registers them."""

from vision_peft.models.vit_mini import vit_mini

__all__ = ["vit_mini"]
