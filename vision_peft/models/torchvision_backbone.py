"""timm's feature maps as torchvision's detectors and segmenters take them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from peft_kernels.config import nearest

Task = Literal["detection", "segmentation"]
TASKS = ("detection", "segmentation")


class TorchvisionBackbone(nn.Module):
    """A model's maps brought to one width by a feature pyramid network (Lin et al., CVPR 2017).

    For detection the levels by their numbers, the finest first, and a pooled one; for segmentation the finest, ``out``,
    into which the network has added all others.

    Args:
        model: a timm model made with ``features_only=True``.
        out_channels: width of the levels.
        task: "detection" (``FasterRCNN``, ``RetinaNet``, ``MaskRCNN``) or "segmentation" (``FCN``, ``DeepLabV3``).

    Raises:
        ValueError: the model gives no list of maps, or the task is unknown.
    """

    def __init__(self, model: nn.Module, out_channels: int = 256, task: Task = "detection") -> None:
        super().__init__()
        info: Any = getattr(model, "feature_info", None)
        if not callable(getattr(info, "channels", None)):
            raise ValueError(
                f"a backbone gives a list of maps; create the {type(model).__name__} with features_only=True"
            )
        if task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}; found {task!r}{nearest(task, TASKS)}")
        self.body, self.out_channels, self.task = model, out_channels, task
        self.channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        extra = LastLevelMaxPool() if task == "detection" else None
        self.fpn = FeaturePyramidNetwork(info.channels(), out_channels, extra)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps ``[batch, out_channels, height, width]`` by their names."""
        maps = [each.movedim(-1, 1) if self.channels_last else each for each in self.body(x)]
        levels = self.fpn(OrderedDict((str(index), each) for index, each in enumerate(maps)))
        return levels if self.task == "detection" else {"out": levels["0"]}


def torchvision_backbone(model: nn.Module, out_channels: int = 256, task: Task = "detection") -> TorchvisionBackbone:
    """A backbone for torchvision's detectors and segmenters, see `TorchvisionBackbone`.

    Args:
        model: a timm model made with ``features_only=True``, such as ``fdconv_resnet50`` or a dense pyramid.
        out_channels: width of all levels.
        task: "detection" or "segmentation".
    """
    return TorchvisionBackbone(model, out_channels, task)
