"""Orders of points along a curve: Morton's z-order, and the greedy chain of nearest points.

Z-order (PointGST, Liang et al., TPAMI 2025): q = trunc(grid · c) as 16 bits of two's complement, and their bits
interleaved, ``y`` highest, then ``x``, then ``z``; so negative coordinates come after the others of their axis.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_BITS = 16


def z_order_key(centers: Float[Tensor, "*batch n 3"], grid_per_unit: float = 100.0) -> Int[Tensor, "*batch n"]:
    """The 48 interleaved bits of every point's cell; cells beyond 16 bits wrap around.

    Args:
        centers: the points.
        grid_per_unit: cells a unit of length.
    """
    cell = (centers.detach() * grid_per_unit).trunc().to(torch.int64)
    bit = torch.arange(_BITS, device=centers.device)
    bits = (cell[..., None] >> bit) & 1  # [..., xyz, bit]
    place = 3 * bit + torch.tensor([1, 2, 0], device=centers.device)[:, None]
    return (bits << place).sum((-2, -1))


def z_order(centers: Float[Tensor, "batch points 3"], grid_per_unit: float = 100.0) -> Int[Tensor, "batch points"]:
    """Indices that sort the points along the curve; points of one cell stay in their order."""
    return z_order_key(centers, grid_per_unit).argsort(dim=-1, stable=True)


def inverse_order(order: Int[Tensor, "batch points"]) -> Int[Tensor, "batch points"]:
    """The places of the points in ``order``: ``order[inverse] = 0, 1, 2, ...``."""
    return order.argsort(-1)


def greedy_order(centers: Float[Tensor, "batch points 3"]) -> Int[Tensor, "batch points"]:
    """PointGPT's order: from the first point on, always to the nearest one that is left (Chen et al., NeurIPS 2023)."""
    batch, count = centers.shape[:2]
    distance = (centers.detach()[:, :, None] - centers.detach()[:, None]).square().sum(-1)
    rows = torch.arange(batch, device=centers.device)
    order = torch.zeros(batch, count, dtype=torch.int64, device=centers.device)
    for i in range(1, count):
        distance[rows, :, order[:, i - 1]] = torch.inf
        order[:, i] = distance[rows, order[:, i - 1]].argmin(-1)
    return order
