"""How well pictures keep to what steered them: their edges, and the colours of their patches."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F


def edge_agreement(
    found: Bool[Tensor, "batch 1 height width"], wanted: Bool[Tensor, "batch 1 height width"], reach: int = 1
) -> Float[Tensor, "batch"]:
    """F1 of edge pixels, 0 to 1: the harmonic mean of two shares, of found ones that lie within `reach` pixels of a
    wanted one, and of wanted ones that lie so near to a found one. Where there is none in both it is 1.
    """

    def near(edges: Tensor, others: Tensor) -> Tensor:
        around = F.max_pool2d(others.float(), 2 * reach + 1, 1, reach)
        return (edges * around).flatten(1).sum(1) / edges.flatten(1).sum(1).clamp(min=1)

    precision, recall = near(found, wanted), near(wanted, found)
    none = ~(found.flatten(1).any(1) | wanted.flatten(1).any(1))
    return torch.where(none, torch.ones_like(recall), 2 * precision * recall / (precision + recall).clamp(min=1e-9))


def color_distance(
    found: Float[Tensor, "batch 3 height width"], wanted: Float[Tensor, "batch 3 height width"], patches: int
) -> Float[Tensor, "batch"]:
    """Mean absolute difference of the mean colours of patches; of pictures in [0, 1], 0 to 1."""
    means = [F.adaptive_avg_pool2d(pictures, patches) for pictures in (found, wanted)]
    return (means[0] - means[1]).abs().flatten(1).mean(1)
