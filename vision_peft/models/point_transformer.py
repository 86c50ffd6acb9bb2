"""`point_mae` and its kin: the point transformer of Point-MAE, ACT and ReCon, under the names of their checkpoints.

Farthest points and their neighbours become patches, a small PointNet makes each a token, and plain pre-norm blocks of
timm attend over them, the embedded position *added again before every block*:

    x ← block(x + pos),    logits = head([x_cls ‖ max x_points])

Point-MAE (Pang et al., ECCV 2022, 2203.06604), ACT (Dong et al., ICLR 2023, 2212.08320), ReCon (Qi et al., ICML 2023,
2302.02318) differ in their weights alone, Point-BERT (Yu et al., CVPR 2022, 2111.14819) in a narrower patch encoder
and a head of two layers. `point_mae_parts` labels every point (ShapeNetPart) instead of the cloud.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.models import register_model
from timm.models._registry import generate_default_cfgs
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from peft_kernels.ops.point_sets.farthest import ORIGIN_THRESHOLD
from vision_peft.models.point_model import PointModel, build_point_model, classified, point_cfg, point_head, start
from vision_peft.models.point_patches import Grouping, PatchEncoder


class PointBlocks(nn.Module):
    """Blocks in a row, each of which reads its input plus the positions."""

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        drop_path_rate: float,
        qkv_bias: bool = False,
    ) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio,
                qkv_bias,
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


class PointBackbone(PointModel):
    """What all models here share: patches, tokens, positions, blocks and the last norm.

    Args:
        num_groups: G, the number of tokens of a cloud.
        group_size: k, the points a patch is made of.
        embed_dim: C, the width.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: width of a block's MLP over C.
        qkv_bias: whether queries, keys and values have biases; in no public checkpoint.
        drop_path_rate: of the last block; it grows linearly from 0.
        origin_threshold: squared norm up to which a point is no centre.
        encoder_dim: width of the patch encoder where a linear map then makes it C (Point-BERT).
        encoder_widths: of the patch encoder's first stage.
    """

    def __init__(
        self,
        num_groups: int = 128,
        group_size: int = 32,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        drop_path_rate: float = 0.1,
        origin_threshold: float | None = ORIGIN_THRESHOLD,
        encoder_dim: int | None = None,
        encoder_widths: tuple[int, ...] = (128, 256),
    ) -> None:
        super().__init__()
        self.embed_dim = self.num_features = self.head_hidden_size = embed_dim
        self.group_divider = Grouping(num_groups, group_size, origin_threshold)
        self.encoder = PatchEncoder(encoder_dim or embed_dim, encoder_widths)
        self.reduce_dim = nn.Linear(encoder_dim, embed_dim) if encoder_dim else nn.Identity()
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, embed_dim))
        self.blocks = PointBlocks(embed_dim, depth, num_heads, mlp_ratio, drop_path_rate, qkv_bias)
        self.norm = nn.LayerNorm(embed_dim)

    def patches(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens and positions ``[B, G, C]`` of the patches of clouds ``[B, N, 3]``, and the patches' centres."""
        patches, centers = self.group_divider(points)
        return self.reduce_dim(self.encoder(patches)), self.pos_embed(centers), centers

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute every block again in the backward pass instead of keeping what is in it."""
        self.blocks.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's groups of layers: what comes before the blocks, and each block."""
        return {
            "stem": r"^cls_token|^cls_pos|^encoder|^reduce_dim|^pos_embed",
            "blocks": r"^blocks\.blocks" if coarse else [(r"^blocks\.blocks\.(\d+)", None), (r"^norm", (99999,))],
        }


class PointTransformer(PointBackbone):
    """The classifier.

    Args:
        num_classes: 0 leaves out the head: the model then gives the pooled features.
        short_head: Point-BERT's head, of two layers without batch norms.
        **settings: those of `PointBackbone`.
    """

    def __init__(self, num_classes: int = 15, short_head: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self.num_classes, self.short_head = num_classes, short_head
        self.cls_token = nn.Parameter(torch.empty(1, 1, self.embed_dim))
        self.cls_pos = nn.Parameter(torch.empty(1, 1, self.embed_dim))
        self.cls_head_finetune = point_head(2 * self.embed_dim, num_classes, short_head)
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
        self.cls_head_finetune = point_head(2 * self.embed_dim, num_classes, self.short_head).to(self.cls_token)
        start(self.cls_head_finetune)

    def embed(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and positions ``[B, 1 + G, C]``, the class token first."""
        tokens, pos, _ = self.patches(points)
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


WEIGHTS = Path(__file__).resolve().parent.parent / "assets" / "point_mini" / "model.safetensors"
_NAMES = ("point_mae", "point_act", "point_recon", "point_bert")
default_cfgs = generate_default_cfgs(
    {
        **{f"{name}.untrained": point_cfg() for name in _NAMES},
        "point_mini.surfaces": point_cfg(file=str(WEIGHTS), input_size=(3, 1, 1024), license="apache-2.0"),
    }
)
# Small enough to train and adapt on a laptop's processor.
MINI: dict[str, Any] = {
    "num_groups": 64,
    "group_size": 16,
    "embed_dim": 96,
    "depth": 4,
    "num_heads": 3,
    "encoder_widths": (32, 64),
    "drop_path_rate": 0.0,
}


def _classifier(variant: str, pretrained: bool, kwargs: dict[str, Any]) -> PointTransformer:
    return build_point_model(PointTransformer, variant, pretrained, **kwargs)


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


@register_model
def point_bert(pretrained: bool = False, **kwargs: Any) -> PointTransformer:
    """Point-BERT: a patch encoder of width 256, a linear map to Point-MAE's blocks, a head of two layers."""
    return _classifier("point_bert", pretrained, {"encoder_dim": 256, "short_head": True, **kwargs})


@register_model
def point_mini(pretrained: bool = False, **kwargs: Any) -> PointTransformer:
    """Point-MAE's architecture of width 96, 4 blocks, 64 patches of 16 points; `pretrained` loads the packaged file."""
    return _classifier("point_mini", pretrained, {**MINI, **kwargs})
