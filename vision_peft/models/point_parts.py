"""`point_mae_parts`: Point-MAE labelling every point with its part (ShapeNetPart, 50 parts of 16 classes).

Features behind three blocks are carried from the patches' centres to all points and join what is known of the whole
cloud and of its class. Nothing here is a class token.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import register_model
from timm.models._registry import generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional as F

from peft_kernels.ops.point_sets import interpolate_features
from vision_peft.models.point_model import build_point_model, point_cfg, start
from vision_peft.models.point_patches import on_rows
from vision_peft.models.point_transformer import PointBackbone

HEAD = ("label_conv", "propagation_0", "convs1", "bns1", "convs2", "bns2", "convs3")


class FeaturePropagation(nn.Module):
    """Features of centres, interpolated at points and joined to theirs, through convolutions of one point.

    Args:
        features: channels of both together.
        widths: of the convolutions, each with batch norm and ReLU.
    """

    def __init__(self, features: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        pairs = list(zip((features, *widths[:-1]), widths, strict=True))
        self.mlp_convs = nn.ModuleList(nn.Conv1d(before, after, 1) for before, after in pairs)
        self.mlp_bns = nn.ModuleList(nn.BatchNorm1d(width) for width in widths)

    def forward(
        self, points: Tensor, centers: Tensor, own: Tensor, features: Tensor, k: int = 3, eps: float = 1e-8
    ) -> Tensor:
        """``[B, N, C]`` at ``points``, which have features ``own``, from ``features`` at ``centers``."""
        x = torch.cat([own, interpolate_features(points, centers, features, k, eps)], -1)
        rows = x.flatten(0, 1)
        for conv, norm in zip(self.mlp_convs, self.mlp_bns, strict=True):
            rows = F.relu(norm(on_rows(conv, rows)))
        return rows.view(*x.shape[:2], -1)


class PointParts(PointBackbone):
    """The part segmenter.

    Args:
        num_classes: number of parts.
        num_categories: number of classes of clouds, of which one is told for each.
        levels: the blocks whose features are read.
        **settings: those of `PointBackbone`.
    """

    head_names, fresh_names = HEAD, HEAD

    def __init__(
        self, num_classes: int = 50, num_categories: int = 16, levels: tuple[int, ...] = (3, 7, 11), **settings: Any
    ) -> None:
        super().__init__(**settings)
        if max(levels) >= len(self.blocks.blocks):
            raise ValueError(f"levels must be blocks, 0 to {len(self.blocks.blocks) - 1}; found {levels}")
        self.num_classes, self.num_categories, self.levels = num_classes, num_categories, levels
        width = len(levels) * self.embed_dim
        label = nn.Conv1d(num_categories, 64, 1, bias=False)
        self.label_conv = nn.Sequential(label, nn.BatchNorm1d(64), nn.LeakyReLU(0.2))
        self.propagation_0 = FeaturePropagation(3 + width, (4 * self.embed_dim, 1024))
        self.convs1, self.bns1 = nn.Conv1d(1024 + 2 * width + 64, 512, 1), nn.BatchNorm1d(512)
        self.convs2, self.bns2 = nn.Conv1d(512, 256, 1), nn.BatchNorm1d(256)
        self.convs3, self.dp1 = nn.Conv1d(256, num_classes, 1), nn.Dropout(0.5)
        start(self)

    def forward(self, points: Tensor, categories: Tensor) -> Tensor:
        """Logits ``[B, N, parts]`` of clouds ``[B, N, 3]`` of the given classes ``[B]``."""
        tokens, pos, centers = self.patches(points)
        found = self.blocks.outputs(tokens, pos)
        tokens = torch.cat([self.norm(found[i]) for i in self.levels], -1)
        label = self.label_conv(F.one_hot(categories.flatten(), self.num_categories)[..., None].to(tokens.dtype))
        whole = torch.cat([tokens.amax(1), tokens.mean(1), label.squeeze(-1)], -1)
        each = self.propagation_0(points, centers, points, tokens)
        x = torch.cat([each, whole[:, None].expand(-1, points.shape[1], -1)], -1).flatten(0, 1)
        x = self.dp1(F.relu(self.bns1(on_rows(self.convs1, x))))
        x = F.relu(self.bns2(on_rows(self.convs2, x)))
        return on_rows(self.convs3, x).view(*points.shape[:2], -1)


default_cfgs = generate_default_cfgs({"point_mae_parts.untrained": point_cfg(num_classes=50, classifier=HEAD)})


@register_model
def point_mae_parts(pretrained: bool = False, **kwargs: Any) -> PointParts:
    """Point-MAE with its head for parts: 27,063,730 parameters, 5,238,706 of them in the head."""
    return build_point_model(PointParts, "point_mae_parts", pretrained, **kwargs)
