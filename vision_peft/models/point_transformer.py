"""`point_mae` and its kin: the point transformer of Point-MAE, ACT and ReCon, under the names of their checkpoints.

Farthest points and their neighbours become patches, a small PointNet makes each a token, and plain pre-norm blocks of
timm attend over them, the embedded position *added again before every block*:

    x ← block(x + pos),    logits = head([x_cls ‖ max x_points])

Point-MAE (Pang et al., ECCV 2022, 2203.06604), ACT (Dong et al., ICLR 2023, 2212.08320), ReCon (Qi et al., ICML 2023,
2302.02318) differ in their weights alone. `point_mae_parts` labels every point (ShapeNetPart) instead of the cloud.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.models import build_model_with_cfg, register_model
from timm.models._registry import generate_default_cfgs
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from peft_kernels.ops.point_sets.farthest import ORIGIN_THRESHOLD
from vision_peft.models.point_patches import Grouping, PatchEncoder


class PointBlocks(nn.Module):
    """Blocks in a row, each of which reads its input plus the positions."""

    def __init__(self, embed_dim: int, depth: int, num_heads: int, mlp_ratio: float, drop_path_rate: float) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio,
                norm_layer=partial(nn.LayerNorm, eps=1e-5),  # type: ignore[arg-type]
                drop_path=drop_path_rate * i / max(1, depth - 1),
            )
            for i in range(depth)
        )

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        """The last block's output."""
        return self.outputs(x, pos)[-1]

    def outputs(self, x: Tensor, pos: Tensor) -> list[Tensor]:
        """Every block's output."""
        found = []
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x + pos, use_reentrant=False)  # type: ignore[assignment]
            else:
                x = block(x + pos)
            found.append(x)
        return found


class PointBackbone(nn.Module):
    """What all models here share: patches, tokens, positions, blocks and the last norm.

    Args:
        num_groups: G, the number of tokens of a cloud.
        group_size: k, the points a patch is made of.
        embed_dim: C, the width.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: width of a block's MLP over C.
        drop_path_rate: of the last block; it grows linearly from 0.
        origin_threshold: squared norm up to which a point is no centre.
    """

    def __init__(
        self,
        num_groups: int = 128,
        group_size: int = 32,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.1,
        origin_threshold: float | None = ORIGIN_THRESHOLD,
    ) -> None:
        super().__init__()
        self.embed_dim = self.num_features = self.head_hidden_size = embed_dim
        self.group_divider = Grouping(num_groups, group_size, origin_threshold)
        self.encoder = PatchEncoder(embed_dim)
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, embed_dim))
        self.blocks = PointBlocks(embed_dim, depth, num_heads, mlp_ratio, drop_path_rate)
        self.norm = nn.LayerNorm(embed_dim)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute every block again in the backward pass instead of keeping what is in it."""
        self.blocks.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's groups of layers: what comes before the blocks, and each block."""
        return {
            "stem": r"^cls_token|^cls_pos|^encoder|^pos_embed",
            "blocks": r"^blocks\.blocks" if coarse else [(r"^blocks\.blocks\.(\d+)", None), (r"^norm", (99999,))],
        }


class PointTransformer(PointBackbone):
    """The classifier.

    Args:
        num_classes: 0 leaves out the head: the model then gives the pooled features.
        **settings: those of `PointBackbone`.
    """

    def __init__(self, num_classes: int = 15, **settings: Any) -> None:
        super().__init__(**settings)
        self.num_classes = num_classes
        self.cls_token = nn.Parameter(torch.empty(1, 1, self.embed_dim))
        self.cls_pos = nn.Parameter(torch.empty(1, 1, self.embed_dim))
        self.cls_head_finetune = point_head(2 * self.embed_dim, num_classes)
        start(self)

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay; ``cls_pos`` has it, as in the official recipes."""
        return {"cls_token"}

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.cls_head_finetune

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for so many classes."""
        self.num_classes = num_classes
        self.cls_head_finetune = point_head(2 * self.embed_dim, num_classes).to(self.cls_token)
        start(self.cls_head_finetune)

    def embed(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and positions ``[B, 1 + G, C]``, the class token first."""
        patches, centers = self.group_divider(points)
        tokens, pos = self.encoder(patches), self.pos_embed(centers)
        first = (part.expand(len(points), -1, -1) for part in (self.cls_token, self.cls_pos))
        return tuple(torch.cat(pair, 1) for pair in zip(first, (tokens, pos), strict=True))  # type: ignore[return-value]

    def forward_features(self, points: Tensor) -> Tensor:
        """Tokens ``[B, 1 + G, C]`` behind the last norm, of clouds ``[B, N, 3]``."""
        return self.norm(self.blocks(*self.embed(points)))

    def forward_intermediates(self, points: Tensor, indices: list[int] | None = None, norm: bool = False) -> Any:
        """The last tokens, and those behind the blocks ``indices`` (all)."""
        found = self.blocks.outputs(*self.embed(points))
        chosen = [found[i] for i in (range(len(found)) if indices is None else indices)]
        return self.norm(found[-1]), [self.norm(x) for x in chosen] if norm else chosen

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of tokens; ``pre_logits``: the pooled features ``[B, 2 C]``."""
        pooled = torch.cat([x[:, 0], x[:, 1:].amax(1)], -1)
        return pooled if pre_logits else classified(self.cls_head_finetune, pooled)

    def forward(self, points: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of clouds ``[B, N, 3]``."""
        return self.forward_head(self.forward_features(points))


def point_head(features: int, num_classes: int) -> nn.Module:
    """The three-layer classifier of all these models; for 0 classes, none."""
    if not num_classes:
        return nn.Identity()
    layers: list[nn.Module] = []
    for width in (features, 256):
        layers += [nn.Linear(width, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(0.5)]
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
    """Start from scratch: truncated normal 0.02 for weights and tokens, zero for biases."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Conv1d)):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for name, parameter in module.named_parameters(recurse=False):
        if name.startswith(("cls_", "sos")):
            nn.init.trunc_normal_(parameter, std=0.02)


def point_cfg(**values: Any) -> dict[str, Any]:
    """timm's description of a point model."""
    return {
        "num_classes": 15,
        "input_size": (1, 2048, 3),  # timm wants three sizes
        "pool_size": None,
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "first_conv": "encoder.first_conv.0",
        "classifier": "cls_head_finetune",
        **values,
    }


NOT_POINTS = ("in_chans", "global_pool")  # what timm hands to models of pictures
default_cfgs = generate_default_cfgs(
    {name: point_cfg() for name in ("point_mae.untrained", "point_act.untrained", "point_recon.untrained")}
)


def _classifier(variant: str, pretrained: bool, kwargs: dict[str, Any]) -> PointTransformer:
    return build_model_with_cfg(PointTransformer, variant, pretrained, kwargs_filter=NOT_POINTS, **kwargs)


@register_model
def point_mae(pretrained: bool = False, **kwargs: Any) -> PointTransformer:
    """Point-MAE: width 384, 12 blocks, 128 patches of 32 points; 22,093,327 parameters with 15 classes."""
    return _classifier("point_mae", pretrained, kwargs)


@register_model
def point_act(pretrained: bool = False, **kwargs: Any) -> PointTransformer:
    """ACT: Point-MAE's architecture."""
    return _classifier("point_act", pretrained, kwargs)


@register_model
def point_recon(pretrained: bool = False, **kwargs: Any) -> PointTransformer:
    """ReCon's point encoder: Point-MAE's architecture."""
    return _classifier("point_recon", pretrained, kwargs)
