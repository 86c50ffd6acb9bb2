"""Neighbourhoods of a cloud's tokens, and the weights with which what they give is carried back to all tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from peft_kernels.ops.point_sets import farthest_points, gathered, nearest_neighbours

_EPS = 1e-8


class Neighbourhoods(NamedTuple):
    """S neighbourhoods among V vertices: a cloud's G patches, learned prompts before them where there are some.

    Attributes:
        centers: [B, S], the vertex in the middle of each.
        members: [B, S, k], its nearest vertices.
        weights: [B, G, S], the share that each has in what a patch gets; gradients pass to the prompts' places.
    """

    centers: Tensor
    members: Tensor
    weights: Tensor


def neighbourhoods(
    patches: Tensor, prompts: Tensor | None, size: int, origin_threshold: float | None
) -> Neighbourhoods:
    """Half as many neighbourhoods as there are patches, around farthest vertices.

    Indices are those of a cloud's own vertices; the released code mixes those of other clouds of the batch in.

    Args:
        patches: [B, G, 3], centres of patches.
        prompts: [M, 3], places of prompts, which are vertices before the patches.
        size: vertices of a neighbourhood; all of them where there are fewer.
        origin_threshold: squared norm up to which a vertex is no centre, but for the first one.
    """
    vertices = patches
    if prompts is not None:
        vertices = torch.cat([prompts.to(patches.dtype).expand(len(patches), -1, -1), patches], 1)
    centers = farthest_points(vertices, max(1, patches.shape[1] // 2), origin_threshold)
    places = gathered(vertices, centers)
    members = nearest_neighbours(vertices, places, min(size, vertices.shape[1]))
    weights = ((patches[:, :, None] - places[:, None]).square().sum(-1) + _EPS).reciprocal()
    return Neighbourhoods(centers, members, weights / weights.sum(-1, keepdim=True))
