"""P2P: a cloud is painted as one colourful picture, and a pretrained model of pictures classifies it.

Point-to-pixel prompting (Wang et al., NeurIPS 2022, arXiv 2208.02812). A small painter is learned, and of the image
model, any of timm's, its norms, class token and a new head, or what any other method of this toolkit trains:

    model = point_to_pixel("deit_tiny_patch16_224", num_classes=40)           # pretrained=True with a network
    model = get_peft_model(model, painter_config(model))                      # or SsfConfig(), LoraConfig(...), ...

In training every cloud is seen from one random direction; else the logits of `views` directions are averaged.
"""

from __future__ import annotations

import math
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from peft_kernels.ops.point_sets import gathered, nearest_neighbours, painted, pixel_places
from peft_kernels.targets import head_names

TEST_VIEWS, TILT = 8, -0.35 * math.pi


def rotation(axis: Tensor, angle: Tensor) -> Tensor:
    """Rodrigues' matrices ``[B, 3, 3]`` about unit axes ``[B, 3]``."""
    x, y, z = axis.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).view(-1, 3, 3)
    s, c = angle.sin()[:, None, None], angle.cos()[:, None, None]
    return torch.eye(3, dtype=axis.dtype, device=axis.device) + s * cross + (1 - c) * cross @ cross


def view_rotation(theta: Tensor, phi: Tensor) -> Tensor:
    """Turn by −θ about the third axis after a tilt by −φ about (sin θ, −cos θ, 0): ``[B, 3, 3]`` for angles ``[B]``."""
    up = torch.zeros(len(theta), 3, dtype=theta.dtype, device=theta.device)
    up[:, 2] = 1
    tilt = torch.stack([theta.sin(), -theta.cos(), torch.zeros_like(theta)], -1)
    return rotation(up, -theta) @ rotation(tilt, -phi)


class Painter(nn.Module):
    """Features of points from their neighbourhoods, summed on pixels, refined and coloured; 83,683 parameters.

    Args:
        k: neighbours of a point.
        hidden: its first features.
        channels: of the picture before it is coloured; divisible by 4.
    """

    def __init__(self, k: int = 32, hidden: int = 8, channels: int = 64) -> None:
        super().__init__()
        if channels % 4:
            raise ValueError(f"channels must be divisible by the 4 groups of the norm; found {channels}")
        self.k = k
        self.input_trans = nn.Conv1d(3, hidden, 1)
        edge = nn.Conv2d(2 * hidden, channels, 1, bias=False)
        self.graph = nn.Sequential(edge, nn.GroupNorm(4, channels), nn.LeakyReLU(0.2))
        self.proj = nn.Conv1d(channels, channels, 1)
        self.refine = nn.Sequential(BasicBlock(channels, channels), nn.Conv2d(channels, channels, 1))
        self.color = nn.Conv2d(channels, 3, 1)

    def features(self, points: Tensor) -> Tensor:
        """``[B, N, channels]`` of clouds ``[B, N, 3]``."""
        f = self.input_trans(points.mT).mT
        near = gathered(f, nearest_neighbours(points, points, min(self.k, points.shape[1])))
        own = f[:, :, None].expand_as(near)
        edges = torch.cat([near - own, own], -1)
        return self.proj(self.graph(edges.permute(0, 3, 1, 2)).amax(-1)).mT

    def forward(self, points: Tensor, turned: Tensor, size: int, canvas: int) -> Tensor:
        """Pictures ``[B, 3, canvas, canvas]`` in (0, 1): features of ``points``, at the places of ``turned`` ones."""
        picture = painted(self.features(points), pixel_places(turned, size), size).permute(0, 3, 1, 2)
        before = (canvas - size) // 2
        picture = F.pad(picture, (before, canvas - size - before, before, canvas - size - before))
        return self.color(self.refine(picture)).sigmoid()


class PointToPixel(nn.Module):
    """Painter and image model.

    Args:
        image_model: a classifier of pictures, of timm's registry.
        obj_size: side of the cloud in the picture, which has the image model's input size; that size itself where not
            given (224 of 224 for ModelNet40, 192 for ScanObjectNN in the paper).
        views: directions whose logits are averaged outside of training.

    Raises:
        ValueError: a cloud larger than the picture.
    """

    def __init__(self, image_model: nn.Module, obj_size: int | None = None, views: int = TEST_VIEWS) -> None:
        super().__init__()
        settings = resolve_model_data_config(image_model)
        self.canvas: int = settings["input_size"][-1]
        self.obj_size = obj_size or self.canvas
        if self.obj_size > self.canvas or not 1 <= views <= TEST_VIEWS:
            raise ValueError(
                f"obj_size must be at most the picture's {self.canvas} pixels and views 1 to {TEST_VIEWS}; found "
                f"{self.obj_size} and {views}"
            )
        self.views = views
        self.painter = Painter()
        self.image_model = image_model
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(settings[name]).view(3, 1, 1), persistent=False)
        self.num_classes = getattr(image_model, "num_classes", None)
        self.pretrained_cfg = {"classifier": ["painter", *(f"image_model.{name}" for name in head_names(image_model))]}

    def paint(self, points: Tensor, theta: Tensor, phi: Tensor, scale: Tensor | None = None) -> Tensor:
        """Normalised pictures ``[B, 3, H, W]`` of clouds ``[B, N, 3]`` turned by the angles ``[B]`` and scaled."""
        turned = points @ view_rotation(theta, phi).mT.to(points)
        turned = turned if scale is None else turned * scale[:, None]
        return (self.painter(points, turned, self.obj_size, self.canvas) - self.mean) / self.std  # type: ignore[operator]

    def forward(self, points: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of clouds ``[B, N, 3]``."""
        like: dict[str, Any] = {"device": points.device, "dtype": points.dtype}
        count = len(points)
        if self.training:
            theta = math.pi * (0.04 + 1.9 * torch.rand(count, **like))
            phi = math.pi * (-0.4 + 0.2 * torch.rand(count, **like))
            return self.image_model(self.paint(points, theta, phi, 2 / 3 + 5 / 6 * torch.rand(count, 3, **like)))
        phi = torch.full((count,), TILT, **like)
        angles = torch.linspace(0.1 * math.pi, 2 * math.pi, TEST_VIEWS + 1, **like)[: self.views]
        pictures = (self.paint(points, angle.expand(count), phi) for angle in angles)
        return torch.stack([self.image_model(picture) for picture in pictures]).mean(0)


def point_to_pixel(
    name: str, num_classes: int, pretrained: bool = False, obj_size: int | None = None, views: int = TEST_VIEWS
) -> PointToPixel:
    """P2P around the timm model ``name``."""
    image_model = timm.create_model(name, pretrained=pretrained, num_classes=num_classes)
    return PointToPixel(image_model, obj_size, views)
