"""Masked modelling of clouds (Point-MAE, Pang et al., ECCV 2022): what `point_mini` is pretrained by.

Of G patches a random share is hidden, as many in every cloud. The encoder sees the others alone; a shallow decoder gets
its tokens and, for each hidden patch, one learned token with the patch's place, and gives the patch's points:

    loss = mean over hidden patches of chamfer(rebuilt points, points around the patch's centre)

Names of tensors are those of the official checkpoints. Unlike there, hidden patches are not encoded, since nothing
reads their tokens.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from peft_kernels.ops.point_sets import chamfer_distance, gathered
from vision_peft.models.point_model import start
from vision_peft.models.point_transformer import PointBackbone


class Decoder(nn.Module):
    """Blocks that read positions before every one, and a norm."""

    def __init__(self, embed_dim: int, depth: int, num_heads: int, drop_path_rate: float) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-5)
        rates = [drop_path_rate * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, norm_layer=norm, drop_path=rate)  # type: ignore[arg-type]
            for rate in rates
        )
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor, pos: Tensor, count: int) -> Tensor:
        """The last ``count`` tokens."""
        for block in self.blocks:
            x = block(x + pos)
        return self.norm(x[:, -count:])


class MaskedPoints(nn.Module):
    """An encoder and the decoder that teaches it; called with clouds ``[B, N, 3]``, it gives their losses ``[B]``.

    Args:
        decoder_depth: blocks of the decoder.
        mask_ratio: share of the patches that is hidden, rounded down.
        **settings: those of `PointBackbone`.

    Raises:
        ValueError: no patch, or all of them, would be hidden.
    """

    def __init__(self, decoder_depth: int = 4, mask_ratio: float = 0.6, **settings: Any) -> None:
        super().__init__()
        encoder = self.MAE_encoder = PointBackbone(**{"num_groups": 64, **settings})
        width, groups, size = encoder.embed_dim, encoder.group_divider.num_groups, encoder.group_divider.group_size
        self.hidden = int(mask_ratio * groups)
        if not 0 < self.hidden < groups:
            raise ValueError(f"mask_ratio must hide some of the {groups} patches and leave some; found {mask_ratio}")
        heads, rate = settings.get("num_heads", 6), settings.get("drop_path_rate", 0.1)
        self.MAE_decoder = Decoder(width, decoder_depth, heads, rate)
        self.decoder_pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width))
        self.increase_dim = nn.Sequential(nn.Conv1d(width, 3 * size, 1))
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        start(self)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, points: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Losses ``[B]``; ``generator`` chooses what is hidden."""
        rebuilt, patches = self.rebuilt(points, generator)
        return chamfer_distance(rebuilt, patches).mean(-1)

    def rebuilt(self, points: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The hidden patches ``[B, hidden, k, 3]`` as the decoder gives them, and as they are."""
        encoder = self.MAE_encoder
        patches, centers = encoder.group_divider(points)
        order = torch.rand(centers.shape[:2], generator=generator, device=points.device).argsort(-1)
        hidden, visible = order[:, : self.hidden], order[:, self.hidden :]
        shown = gathered(patches.flatten(2), visible).view(len(points), -1, *patches.shape[2:])
        places = torch.cat([gathered(centers, visible), gathered(centers, hidden)], 1)
        tokens = encoder.reduce_dim(encoder.encoder(shown))
        x = encoder.norm(encoder.blocks(tokens, encoder.pos_embed(places[:, : visible.shape[1]])))
        x = torch.cat([x, self.mask_token.expand(len(x), self.hidden, -1)], 1)
        x = self.MAE_decoder(x, self.decoder_pos_embed(places), self.hidden)
        found = self.increase_dim(x.mT).mT.reshape(len(x), self.hidden, -1, 3)
        return found, gathered(patches.flatten(2), hidden).view_as(found)
