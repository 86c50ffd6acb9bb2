"""What Point-PEFT trains at one block, and what all blocks share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peft_kernels.feature import Feature
from peft_kernels.ops.point_sets import gathered
from vision_peft.methods.pointpeft.geometry import Neighbourhoods

if TYPE_CHECKING:
    from vision_peft.methods.pointpeft.config import PointPeftConfig


class Bottleneck(nn.Module):
    """``W_up σ(W_down x + b_down) + b_up`` with ``σ(x) = x · sigmoid(1.702 x)``; it does not start at 0."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, width), nn.Linear(width, channels)
        for layer in (self.down, self.up):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        z = self.down(x)
        return self.up(z * torch.sigmoid(1.702 * z))


class Shared(nn.Module):
    """What all blocks of one adapter share, held by its first one.

    Args:
        channels: C, the width of tokens.
        heads: of the attention within neighbourhoods.
        config: the settings.
        memory: features ``[n, C]`` of training clouds; zeros that a file will fill where it is None.
    """

    memory: Tensor

    def __init__(self, channels: int, heads: int, config: PointPeftConfig, memory: Tensor | None) -> None:
        super().__init__()
        self.heads, self.size = heads, config.memory_size or 0
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * config.attn_dim, bias=False)
        self.proj = nn.Linear(config.attn_dim, channels)
        self.places = None
        if config.prompt_depth:
            self.places = nn.Parameter(torch.empty(config.num_prompts, 3))
            nn.init.trunc_normal_(self.places, std=0.02)
        if self.size:
            self.register_buffer("memory", torch.zeros(self.size, channels) if memory is None else memory)

    def attended(self, x: Tensor, members: Tensor) -> Tensor:
        """Tokens ``[B, S, k, C]`` of neighbourhoods, each of which attends to the others of its own.

        Norm and projection read every vertex once, and not once a neighbourhood.
        """
        qkv = gathered(self.qkv(self.norm(x)), members).unflatten(-1, (3, self.heads, -1))
        q, k, v = (part.transpose(2, 3) for part in qkv.unbind(3))
        found = F.scaled_dot_product_attention(q, k, v, scale=self.proj.in_features**-0.5)
        return gathered(x, members) + self.proj(found.transpose(2, 3).flatten(3))


class PointPeft(Feature):
    """The adapter of one block: its prompts, and the geometry-aware adapter behind it.

    Args:
        channels: C, the width of tokens.
        config: the settings.
        prompted: whether the block gets prompts.
        shared: what all blocks share, in the first one.
    """

    def __init__(self, channels: int, config: PointPeftConfig, prompted: bool, shared: Shared | None) -> None:
        super().__init__()
        self.shared, self.scale, self.share = shared, config.adapter_scale, config.propagate
        self.prompt = self.recall = None
        if prompted:
            self.prompt = nn.Parameter(torch.empty(config.num_prompts, channels))
            nn.init.trunc_normal_(self.prompt, std=0.02)
            self.recall = Bottleneck(channels, config.memory_dim) if config.memory_size else None
        self.dropout = nn.Dropout(config.prompt_dropout)
        self.beside, self.behind = Bottleneck(channels, config.adapter_dim), Bottleneck(channels, config.adapter_dim)
        self.norm = nn.BatchNorm1d(channels)

    def prompts(self, batch: int, recalled: Tensor | None) -> Tensor:
        """The block's prompts ``[B, M, C]``, with what the memory gives for each cloud."""
        assert self.prompt is not None
        prompts = self.dropout(self.prompt.expand(batch, -1, -1))
        if self.recall is None or recalled is None:
            return prompts
        recalled = recalled.to(prompts.dtype)
        return prompts + recalled + self.recall(recalled)

    def pooled(self, shared: Shared, x: Tensor, around: Neighbourhoods) -> Tensor:
        """What the neighbourhoods of the vertices ``x`` ``[B, V, C]`` give: ``[B, S, C]``."""
        most = shared.attended(x, around.members).amax(2)
        most = F.gelu(self.norm(most.flatten(0, 1))).view_as(most)
        return most + self.share * gathered(x, around.centers)

    def behind_block(self, shared: Shared, x: Tensor, at: int, around: Neighbourhoods) -> Tensor:
        """Tokens behind the block: ``at`` others and the patches, from these, prompts between them, and patches."""
        others, vertices = x[:, :at], x[:, at:]
        spread = around.weights.to(x.dtype) @ self.pooled(shared, vertices, around)
        patches = vertices[:, -spread.shape[1] :] + self.share * spread
        x = torch.cat([others, patches], 1)
        return x + self.behind(x)

    def why_no_merge(self) -> str:
        return "it puts tokens into the sequence and mixes them by neighbourhoods that depend on the cloud"
