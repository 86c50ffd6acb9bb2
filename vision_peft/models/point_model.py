"""What all models of points share: their head, how they start, how checkpoints load, and timm's description."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar
from zlib import crc32

import torch
from timm.models import build_model_with_cfg
from torch import Tensor, nn

from vision_peft.models.point_checkpoints import checkpoint_filter_fn

_NOT_POINTS = ("in_chans", "global_pool")  # what timm hands to models of pictures
_Model = TypeVar("_Model", bound="PointModel")


class PointModel(nn.Module):
    """A model of points that public checkpoints fill (`load_point_checkpoint`).

    Attributes:
        head_names: the beginning of the names of its head's tensors, which a file may lack or hold for other classes.
        fresh_names: that of others that checkpoints of pretraining lack.
    """

    head_names: ClassVar[tuple[str, ...]] = ("cls_head_finetune",)
    fresh_names: ClassVar[tuple[str, ...]] = ("cls_token", "cls_pos")
    embed_dim: int


def point_head(features: int, num_classes: int, short: bool = False) -> nn.Module:
    """The classifier of three layers with batch norms, or Point-BERT's of two without; for 0 classes, none."""
    if not num_classes:
        return nn.Identity()
    layers: list[nn.Module] = []
    for width in (features,) if short else (features, 256):
        norm = [] if short else [nn.BatchNorm1d(256)]
        layers += [nn.Linear(width, 256), *norm, nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(256, num_classes))


def classified(head: nn.Module, pooled: Tensor) -> Tensor:
    """Logits of pooled features.

    Raises:
        ValueError: one cloud in training, whose batch norms need two.
    """
    if len(pooled) == 1 and any(m.training for m in head.modules() if isinstance(m, nn.BatchNorm1d)):
        raise ValueError("the head's batch norms need at least two clouds in training; found one: call `model.eval()`")
    return head(pooled)


@torch.no_grad()
def start(module: nn.Module) -> None:
    """Start from scratch: truncated normal 0.02 for weights and tokens, zero for biases.

    Tokens, which checkpoints of pretraining lack and adapters need not train, start the same in every model: an adapter
    trained on one fits the next.
    """
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Conv1d)):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for name, parameter in module.named_parameters(recurse=False):
        if name.startswith(("cls_", "sos")):
            own = torch.Generator("cpu").manual_seed(crc32(name.encode()))
            drawn = torch.empty(parameter.shape, device="cpu")
            parameter.copy_(nn.init.trunc_normal_(drawn, std=0.02, generator=own))


def point_cfg(**values: Any) -> dict[str, Any]:
    """timm's description of a point model."""
    return {
        "num_classes": 15,
        "input_size": (3, 1, 2048),  # timm wants three sizes, channels first
        "pool_size": None,
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "first_conv": "encoder.first_conv.0",
        "classifier": "cls_head_finetune",
        **values,
    }


def build_point_model(cls: type[_Model], variant: str, pretrained: bool, **kwargs: Any) -> _Model:
    """timm's builder, with checkpoints loaded by their public names."""
    options: dict[str, Any] = {"kwargs_filter": _NOT_POINTS, "pretrained_filter_fn": checkpoint_filter_fn}
    return build_model_with_cfg(cls, variant, pretrained, **options, **kwargs)
