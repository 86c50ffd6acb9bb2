"""Deformable attention as the formula stands, and through ``grid_sample``, as exporters know it.

A sample at ``(x, y)`` in [0, 1] lies at the pixel ``(x W - 1/2, y H - 1/2)``; it is read bilinearly, and each of the
four corners that lies outside the map counts 0.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def deformable_attention_reference(
    value: Float[Tensor, "batch cells heads width"],
    shapes: Sequence[tuple[int, int]],
    locations: Float[Tensor, "batch queries heads levels points 2"],
    weights: Float[Tensor, "batch queries heads levels points"],
) -> Float[Tensor, "batch queries heads*width"]:
    """The formula, corner by corner.

    Args:
        value: the maps of all levels one after the other, each row-major.
        shapes: rows and columns of each level.
        locations: x before y, in units of the map.
        weights: a factor for each sample.
    """
    batch, _, heads, _ = value.shape
    images = torch.arange(batch, device=value.device).view(-1, 1, 1, 1)
    each = torch.arange(heads, device=value.device).view(-1, 1)
    total: Tensor = value.new_zeros(())
    for level, cells in enumerate(value.split([h * w for h, w in shapes], 1)):
        height, width = shapes[level]
        x, y = locations[:, :, :, level, :, 0] * width - 0.5, locations[:, :, :, level, :, 1] * height - 0.5
        left, top = x.floor(), y.floor()
        for row, of_row in ((top, top + 1 - y), (top + 1, y - top)):
            for column, of_column in ((left, left + 1 - x), (left + 1, x - left)):
                inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                at = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
                factor = weights[:, :, :, level] * of_row * of_column * inside
                total = total + (factor.unsqueeze(-1) * cells[images, at, each]).sum(-2)
    return total.flatten(2).to(value.dtype)


def deformable_attention_grid(
    value: Float[Tensor, "batch cells heads width"],
    shapes: Sequence[tuple[int, int]],
    locations: Float[Tensor, "batch queries heads levels points 2"],
    weights: Float[Tensor, "batch queries heads levels points"],
) -> Float[Tensor, "batch queries heads*width"]:
    """The same through ``grid_sample``: what its exporters know, and what keeps every sample for the backward pass."""
    batch, _, heads, size = value.shape
    total: Tensor = value.new_zeros(())
    for level, cells in enumerate(value.split([h * w for h, w in shapes], 1)):
        maps = cells.permute(0, 2, 3, 1).reshape(batch * heads, size, *shapes[level])
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        read = F.grid_sample(maps, grid.to(maps.dtype), padding_mode="zeros", align_corners=False)
        factor = weights[:, :, :, level].transpose(1, 2).flatten(0, 1).unsqueeze(1)
        total = total + (read * factor).sum(-1)
    return total.view(batch, heads * size, locations.shape[1]).transpose(1, 2).to(value.dtype)
