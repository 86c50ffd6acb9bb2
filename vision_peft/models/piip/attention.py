"""Cross-attention from one branch's tokens to another's: deformable (PIIP's), or to all of them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from peft_kernels.ops import deformable_attention

Grid = tuple[int, int]
"""Rows and columns of a branch's tokens."""


def reference_points(grid: Grid, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Centres of a grid's cells in units of the map, x before y: ``[1, rows * columns, 1, 2]``."""
    rows, columns = (torch.arange(0.5, side, dtype=dtype, device=device) / side for side in grid)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((x.flatten(), y.flatten()), -1)[None, :, None]


def start_offsets(heads: int, levels: int, points: int) -> Tensor:
    """Where samples lie at the start, ``[heads, levels, points, 2]`` in cells: each head looks its own way.

    Point k of head m is k + 1 cells away, along the unit square's border at the angle 2 π m / M.
    """
    angle = torch.arange(heads, dtype=torch.float32) * (2 * math.pi / heads)
    direction = torch.stack((angle.cos(), angle.sin()), -1)
    direction = direction / direction.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, points + 1, dtype=torch.float32)
    return (direction[:, None, None] * steps[:, None]).expand(-1, levels, -1, -1)


class DeformableAttention(nn.Module):
    """Every query reads K samples a head, at places and with weights that it computes itself (Deformable DETR).

    ``y = W_out concat_m Σ_{l,k} softmax(W_a q)_{mlk} · (W_v f)_m(ref + (W_o q)_{mlk} / (W_f, H_f))``, where ``ref`` is
    the query's own place.

    Args:
        width: of queries and output.
        from_width: of the features that are read.
        heads: M.
        points: samples for each head and level.
        levels: maps that are read; PIIP reads one.
        ratio: width of the values by ``width``.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        width: int,
        from_width: int,
        heads: int,
        points: int,
        levels: int = 1,
        ratio: float = 1.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.heads, self.points, self.levels, inner = heads, points, levels, int(ratio * width)
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2, **dd)
        self.attention_weights = nn.Linear(width, heads * levels * points, **dd)
        self.value_proj = nn.Linear(from_width, inner, **dd)
        self.output_proj = nn.Linear(inner, width, **dd)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Samples around the query's own place, all with the same weight."""
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.attention_weights.bias)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(start_offsets(self.heads, self.levels, self.points).flatten())
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, grid: Grid, features: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Tokens ``[batch, queries, width]`` on ``grid`` from features ``[batch, cells, from_width]`` on ``grids``."""
        batch, queries, _ = query.shape
        shape = batch, queries, self.heads, self.levels, self.points
        value = self.value_proj(features).unflatten(-1, (self.heads, -1))
        exact = torch.promote_types(query.dtype, torch.float32)  # half precision loses parts of a cell
        offsets = self.sampling_offsets(query).to(exact).view(*shape, 2)
        weights = self.attention_weights(query).to(exact).unflatten(-1, (self.heads, -1)).softmax(-1).view(shape)
        cells = torch.tensor([(w, h) for h, w in grids], dtype=exact, device=query.device)
        centres = reference_points(grid, exact, query.device)[:, :, :, None, None]
        return self.output_proj(deformable_attention(value, grids, centres + offsets / cells[:, None], weights))


class DenseAttention(nn.Module):
    """Every query reads all features: ``W_out softmax((W_q q)(W_k f)ᵀ / √D) W_v f``, without biases before W_out.

    Args:
        width: of queries and output.
        from_width: of the features that are read.
        heads: M.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(self, width: int, from_width: int, heads: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False, **dd)
        self.k = nn.Linear(from_width, width, bias=False, **dd)
        self.v = nn.Linear(from_width, width, bias=False, **dd)
        self.proj = nn.Linear(width, width, **dd)
        for layer in (self.q, self.k, self.v, self.proj):
            trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(self.proj.bias)

    def forward(self, query: Tensor, grid: Grid, features: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Tokens ``[batch, queries, width]`` from features ``[batch, cells, from_width]``."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.q, query), (self.k, features), (self.v, features))
        )
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
