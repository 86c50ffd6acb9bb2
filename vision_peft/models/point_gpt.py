"""`point_gpt_s`, `point_gpt_b`, `point_gpt_l`: PointGPT (Chen et al., NeurIPS 2023, 2305.11487) as a classifier.

Patches follow one another, each next to the nearest that is left, and attend to those before. As released: the sequence
is ``[sos, cls, tokens]``, the positions ``[cls_pos, sos_pos, ...]`` (crossed), and a block's residual starts from its
*normalised* input: ``x ← LN₁(x + pos)``, ``x ← x + attn(x)``, ``x ← x + mlp(LN₂ x)``.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import register_model
from timm.models._registry import generate_default_cfgs
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from peft_kernels.ops.point_sets.farthest import ORIGIN_THRESHOLD
from vision_peft.models.point_model import PointModel, build_point_model, classified, point_cfg, point_head, start
from vision_peft.models.point_patches import Grouping, PatchEncoder, sine_positions


class CausalBlock(nn.Module):
    """One block; ``drop_path2`` drops nothing, but is where adapters beside the MLP add to its output."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.attn = nn.MultiheadAttention(embed_dim, num_heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(embed_dim, 4 * embed_dim), nn.GELU(), nn.Linear(4 * embed_dim, embed_dim))
        self.drop_path2 = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[B, N, C]``, each of which sees those before it."""
        x = self.ln_1(x)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        x = x + self.attn(x, x, x, attn_mask=later, need_weights=False)[0]
        return x + self.drop_path2(self.mlp(self.ln_2(x)))


class Extractor(nn.Module):
    """The blocks with what stands around them, ``increase_dim`` among it, which only pretraining uses."""

    def __init__(self, embed_dim: int, depth: int, num_heads: int, group_size: int, num_classes: int) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.sos = nn.Parameter(torch.empty(embed_dim))
        self.layers = nn.ModuleList(CausalBlock(embed_dim, num_heads) for _ in range(depth))
        self.ln_f = nn.LayerNorm(embed_dim)
        self.increase_dim = nn.Sequential(nn.Conv1d(embed_dim, 3 * group_size, 1))
        self.cls_norm = nn.LayerNorm(embed_dim)
        self.cls_head_finetune = point_head(2 * embed_dim, num_classes)

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        """Tokens behind all blocks and both norms; ``x`` begins with the class token."""
        x = torch.cat([self.sos.expand(len(x), 1, -1), x], 1)
        for layer in self.layers:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x + pos, use_reentrant=False)  # type: ignore[assignment]
            else:
                x = layer(x + pos)
        return self.cls_norm(self.ln_f(x))


class PointGpt(PointModel):
    """The classifier.

    Args:
        num_classes: 0 leaves out the head.
        num_groups: G, the number of patches.
        group_size: k, the points of each.
        embed_dim: C, the width.
        depth: number of blocks.
        num_heads: attention heads.
        widths: of the patch encoder's first stage.
        origin_threshold: squared norm up to which a point is no centre.
    """

    head_names = ("blocks.cls_head_finetune",)
    fresh_names = ("cls_token", "cls_pos", "blocks.cls_norm", "blocks.increase_dim", "norm.")

    def __init__(
        self,
        num_classes: int = 15,
        num_groups: int = 128,
        group_size: int = 32,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        widths: tuple[int, ...] = (128, 256),
        origin_threshold: float | None = ORIGIN_THRESHOLD,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.embed_dim = self.num_features = self.head_hidden_size = embed_dim
        self.group_divider = Grouping(num_groups, group_size, origin_threshold, chained=True)
        self.encoder = PatchEncoder(embed_dim, widths)
        self.sos_pos = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.cls_pos = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.blocks = Extractor(embed_dim, depth, num_heads, group_size, num_classes)
        self.norm = nn.LayerNorm(embed_dim)  # in the checkpoints, and never called
        start(self)
        start(self.blocks)

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay, as in the official recipes."""
        return {"cls_token"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute every block again in the backward pass instead of keeping what is in it."""
        self.blocks.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's groups of layers: what comes before the blocks, and each block."""
        blocks = r"^blocks\.layers" if coarse else [(r"^blocks\.layers\.(\d+)", None), (r"^blocks|^norm", (99999,))]
        return {"stem": r"^cls_token|^cls_pos|^sos_pos|^encoder", "blocks": blocks}

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.blocks.cls_head_finetune

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for so many classes."""
        self.num_classes = num_classes
        self.blocks.cls_head_finetune = point_head(2 * self.embed_dim, num_classes).to(self.cls_token)
        start(self.blocks.cls_head_finetune)

    def forward_features(self, points: Tensor) -> Tensor:
        """Tokens ``[B, 2 + G, C]`` behind the last norm, of clouds ``[B, N, 3]``."""
        patches, centers = self.group_divider(points)
        own = (part.expand(len(points), -1, -1) for part in (self.cls_token, self.cls_pos, self.sos_pos))
        cls_token, cls_pos, sos_pos = own
        tokens = torch.cat([cls_token, self.encoder(patches)], 1)
        pos = sine_positions(centers, self.embed_dim).to(tokens.dtype)
        return self.blocks(tokens, torch.cat([cls_pos, sos_pos, pos], 1))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of tokens; ``pre_logits``: the pooled features ``[B, 2 C]``."""
        pooled = torch.cat([x[:, 1], x[:, 2:].amax(1)], -1)
        return pooled if pre_logits else classified(self.blocks.cls_head_finetune, pooled)

    def forward(self, points: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of clouds ``[B, N, 3]``."""
        return self.forward_head(self.forward_features(points))


_SIZES: dict[str, dict[str, Any]] = {
    "point_gpt_s": {"embed_dim": 384, "depth": 12, "num_heads": 6, "widths": (128, 256)},
    "point_gpt_b": {"embed_dim": 768, "depth": 12, "num_heads": 12, "widths": (256, 512, 1024)},
    "point_gpt_l": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "widths": (256, 512, 1024)},
}
default_cfgs = generate_default_cfgs(
    {f"{name}.untrained": point_cfg(classifier="blocks.cls_head_finetune") for name in _SIZES}
)


def _classifier(variant: str, pretrained: bool, kwargs: dict[str, Any]) -> PointGpt:
    settings = {**_SIZES[variant], **kwargs}
    return build_point_model(PointGpt, variant, pretrained, **settings)


@register_model
def point_gpt_s(pretrained: bool = False, **kwargs: Any) -> PointGpt:
    """PointGPT-S: width 384, 12 blocks."""
    return _classifier("point_gpt_s", pretrained, kwargs)


@register_model
def point_gpt_b(pretrained: bool = False, **kwargs: Any) -> PointGpt:
    """PointGPT-B: width 768, 12 blocks."""
    return _classifier("point_gpt_b", pretrained, kwargs)


@register_model
def point_gpt_l(pretrained: bool = False, **kwargs: Any) -> PointGpt:
    """PointGPT-L: width 1024, 24 blocks; 309,971,311 parameters with 15 classes."""
    return _classifier("point_gpt_l", pretrained, kwargs)
