"""More tokens in a sequence than a transformer block was made for: what it is told of their positions and pairs."""

from __future__ import annotations

import torch
from torch import Tensor


def put_in(tensor: Tensor, new: Tensor, at: int, dim: int) -> Tensor:
    """``tensor`` with ``new`` put in at the index ``at`` along ``dim``."""
    return torch.cat([tensor.narrow(dim, 0, at), new, tensor.narrow(dim, at, tensor.shape[dim] - at)], dim)


def unturned(rope: Tensor, count: int) -> Tensor:
    """Rotary positions with ``count`` tokens in front that are not turned: sine 0, cosine 1.

    Args:
        rope: ``[..., N, 2 d]``, sines and then cosines, as timm's blocks take them.
        count: the number of new tokens.
    """
    sin, cos = rope.narrow(-2, 0, 1).expand(*rope.shape[:-2], count, -1).chunk(2, -1)
    return torch.cat([torch.cat([torch.zeros_like(sin), torch.ones_like(cos)], -1), rope], -2)


def admitting(mask: Tensor, at: int, count: int) -> Tensor:
    """An attention mask (booleans, or summands of the logits) that leaves all pairs with the new tokens as they are.

    Args:
        mask: ``[..., queries, keys]``; a dimension of size 1 stands for all.
        at: where the new tokens stand.
        count: their number.
    """
    neutral = mask.dtype == torch.bool  # true admits a pair, and 0 adds nothing to it
    for dim in (-1, -2):
        if mask.shape[dim] > 1:
            shape = list(mask.shape)
            shape[dim] = count
            mask = put_in(mask, mask.new_full(shape, neutral), at, dim)
    return mask


def weighing(mask: Tensor | None, logs: Tensor) -> Tensor:
    """An attention mask after which key ``i`` is attended to ``exp(logs[i])`` times as much; ``logs`` is ``[keys]``."""
    if mask is None:
        return logs.view(1, -1)
    return torch.where(mask, logs, -torch.inf) if mask.dtype == torch.bool else mask + logs
