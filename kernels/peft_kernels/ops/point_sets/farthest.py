"""Farthest point sampling: a subset of a cloud that covers it evenly (PointNet++, Qi et al., NeurIPS 2017).

The first point is the cloud's first. Then, ``count - 1`` times, the point farthest from all chosen ones:

    t_i ← min(t_i, ‖x_i − x_last‖²),    next = argmax t    (the lowest index of equal ones)

The CUDA library behind Point-BERT, Point-MAE and their followers leaves out points with ``‖x_i‖² ≤ 1e-3``: they are
never chosen, except as the first. Their checkpoints were trained so; ``origin_threshold=0`` is the textbook's rule.

FLOPs: 8 · batch · points · count. Bytes: four rows of a cloud are read and one is written a step, out of the cache.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .clouds import check_clouds, check_count, in_triton

ORIGIN_THRESHOLD = 1e-3


def farthest_points_reference(
    points: Float[Tensor, "batch points 3"], count: int, origin_threshold: float | None = ORIGIN_THRESHOLD
) -> Int[Tensor, "batch count"]:
    """The indices as the formula stands."""
    near = points.square().sum(-1) <= origin_threshold if origin_threshold else torch.zeros_like(points[..., 0]).bool()
    distance = torch.full_like(points[..., 0], 1e10).masked_fill(near, -1.0)
    chosen = [torch.zeros(len(points), dtype=torch.int64, device=points.device)]
    for _ in range(count - 1):
        last = points[torch.arange(len(points), device=points.device), chosen[-1]]
        distance = torch.minimum(distance, (points - last[:, None]).square().sum(-1))
        chosen.append(distance.argmax(-1))
    return torch.stack(chosen, 1)


def farthest_points(
    points: Float[Tensor, "batch points 3"], count: int, origin_threshold: float | None = ORIGIN_THRESHOLD
) -> Int[Tensor, "batch count"]:
    """Indices of ``count`` points of every cloud, in the order they are chosen; no gradient passes.

    Where a cloud has fewer distinct points than ``count``, duplicates are chosen; where all of it is left out by the
    rule of the origin, its first point again and again, as the CUDA library does.

    Args:
        points: the clouds.
        count: how many are chosen.
        origin_threshold: squared norm up to which a point is left out; 0 or None leaves out none.

    Raises:
        ValueError: no clouds of finite points, or more points wanted than there are.
    """
    check_clouds(points)
    check_count("count", count, points.shape[1], "points")
    return _farthest(points.detach(), count, float(origin_threshold or 0.0))


@torch.library.custom_op("peft_kernels::farthest_points", mutates_args=())
def _farthest(points: Tensor, count: int, origin_threshold: float) -> Tensor:
    if points.dtype.itemsize < 4:
        points = points.float()
    if in_triton(points):
        from .points_triton import farthest

        return farthest(points, count, origin_threshold)
    x, y, z = points.unbind(-1)
    x, y, z = x.contiguous(), y.contiguous(), z.contiguous()
    distance = torch.full_like(x, 1e10)
    if origin_threshold:
        distance.masked_fill_(points.square().sum(-1) <= origin_threshold, -1.0)
    chosen = torch.zeros(len(points), count, dtype=torch.int64, device=points.device)
    step, to_last = torch.empty_like(x), torch.empty_like(x)
    for i in range(1, count):
        last = chosen[:, i - 1 : i]
        torch.sub(x, x.gather(1, last), out=to_last).square_()
        for row in (y, z):
            torch.sub(row, row.gather(1, last), out=step)
            to_last.addcmul_(step, step)
        torch.minimum(distance, to_last, out=distance)
        chosen[:, i] = distance.argmax(1)
    return chosen


@_farthest.register_fake
def _(points, count, origin_threshold):
    return points.new_empty(len(points), count, dtype=torch.int64)
