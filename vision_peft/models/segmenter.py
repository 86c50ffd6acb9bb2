"""Classes of pixels from any timm model's maps."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.fcn import FCNHead

from vision_peft.models.torchvision_backbone import TorchvisionBackbone


class Segmenter(nn.Module):
    """A model's maps, added up by a feature pyramid network on the finest, and torchvision's FCN head.

    Args:
        model: a timm model made with ``features_only=True``.
        num_classes: of pixels.
        width: of what the head reads.
    """

    def __init__(self, model: nn.Module, num_classes: int, width: int = 64) -> None:
        super().__init__()
        self.backbone = TorchvisionBackbone(model, width, "segmentation")
        self.head = FCNHead(width, num_classes)
        known: Any = model
        self.pretrained_cfg = {**known.pretrained_cfg, "classifier": ("backbone.fpn", "head")}

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[batch, num_classes, height, width]`` of pictures ``[batch, 3, height, width]``."""
        return F.interpolate(self.head(self.backbone(x)["out"]), x.shape[-2:], mode="bilinear")
