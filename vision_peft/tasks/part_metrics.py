"""How well the parts of clouds are told apart, as ShapeNetPart is judged.

A point's part is the likeliest of those that its cloud's category has. A cloud's IoU is the mean over these parts; one
that neither the cloud nor the prediction has counts 1. Instance mIoU is the mean over clouds, class mIoU that over
categories of the mean over their clouds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def predicted_parts(logits: Tensor, categories: Tensor, parts: Sequence[range]) -> Tensor:
    """Parts ``[B, N]`` of logits ``[B, N, all parts]``, of the ranges ``parts`` that the categories ``[B]`` have."""
    own = torch.zeros(len(parts), logits.shape[-1], dtype=torch.bool, device=logits.device)
    for category, numbers in enumerate(parts):
        own[category, list(numbers)] = True
    return logits.masked_fill(~own[categories][:, None], -torch.inf).argmax(-1)


def cloud_ious(predicted: Tensor, parts: Tensor, categories: Tensor, ranges: Sequence[range]) -> Tensor:
    """The mean IoU ``[B]``, float64, of each cloud's parts ``[B, N]``."""
    first = torch.tensor([numbers[0] for numbers in ranges], device=parts.device)[categories]
    count = torch.tensor([len(numbers) for numbers in ranges], device=parts.device)[categories]
    slot = torch.arange(int(count.max()), device=parts.device)
    numbers = (first[:, None] + slot)[:, :, None]  # [B, slots, 1]
    told, true = predicted[:, None] == numbers, parts[:, None] == numbers
    both, either = (told & true).sum(-1), (told | true).sum(-1)
    iou = torch.where(either > 0, both.double() / either.clamp_min(1), 1.0)
    return (iou * (slot < count[:, None])).sum(-1) / count
