"""The nearest points of a cloud to some centres, and the patches they form.

Squared distances come from coordinate differences. `torch.cdist` expands the square as soon as there are more than 25
points, and rounds small distances to nonsense then: neighbours swap, and a centre may not be its own nearest point. All
pairs are never held at once, but blocks of centres that fit the cache. The k nearest lie in the k columns of points
whose nearest ones are nearest, so that of 1,024 points most drop out by a vectorised minimum before anything is sorted.

FLOPs: 8 · batch · centres · points, and partial sorts of √(k · points) and as many values for every centre.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from .clouds import check_clouds, check_count, in_triton

_BLOCK = 1 << 17  # distances computed at a time: 512 KiB in float32


def nearest_neighbours_reference(
    points: Float[Tensor, "batch points 3"], centers: Float[Tensor, "batch centers 3"], k: int
) -> Int[Tensor, "batch centers k"]:
    """The indices as the definition stands: all distances, a stable sort."""
    distance = (centers[:, :, None] - points[:, None]).square().sum(-1)
    return distance.argsort(dim=-1, stable=True)[..., :k]


def nearest_neighbours(
    points: Float[Tensor, "batch points 3"], centers: Float[Tensor, "batch centers 3"], k: int
) -> Int[Tensor, "batch centers k"]:
    """Indices of the ``k`` points nearest to every centre, ascending by distance; no gradient passes.

    Raises:
        ValueError: no clouds of finite points, clouds of different batches, or ``k`` beyond the number of points.
    """
    check_clouds(points)
    check_clouds(centers, "centers")
    if len(points) != len(centers):
        raise ValueError(f"points and centers must be of one batch; found {len(points)} and {len(centers)} clouds")
    check_count("k", k, points.shape[1], "points")
    return _nearest(points.detach(), centers.detach().to(points.dtype), k)


def grouped(
    points: Float[Tensor, "batch points 3"], centers: Float[Tensor, "batch centers 3"], k: int
) -> tuple[Float[Tensor, "batch centers k 3"], Int[Tensor, "batch centers k"]]:
    """The patch of ``k`` nearest points around every centre, relative to it, and the points' indices."""
    index = nearest_neighbours(points, centers, k)
    return gathered(points, index) - centers[:, :, None], index


def gathered(values: Float[Tensor, "batch points c"], index: Int[Tensor, "batch *places"]) -> Tensor:
    """``values[b, index[b, ...]]``."""
    flat = index.flatten(1)
    found = values.gather(1, flat[..., None].expand(-1, -1, values.shape[-1]))
    return found.view(*index.shape, values.shape[-1])


@torch.library.custom_op("peft_kernels::nearest_neighbours", mutates_args=())
def _nearest(points: Tensor, centers: Tensor, k: int) -> Tensor:
    if points.dtype.itemsize < 4:
        points, centers = points.float(), centers.float()
    if in_triton(points):
        from .points_triton import nearest

        return nearest(points, centers, k)
    lanes = math.isqrt(k * points.shape[1])
    spare = -points.shape[1] % lanes
    x = F.pad(points.mT, (0, spare), value=torch.inf).contiguous()
    c = centers.mT.contiguous()
    index = torch.empty(*centers.shape[:2], k, dtype=torch.int64, device=points.device)
    step = max(1, _BLOCK // x.shape[-1])
    for cloud in range(len(points)):
        for first in range(0, centers.shape[1], step):
            near = c[cloud, :, first : first + step, None]
            distance = (x[cloud, 0] - near[0]).square_()
            for axis in (1, 2):
                difference = x[cloud, axis] - near[axis]
                distance.addcmul_(difference, difference)
            index[cloud, first : first + step] = _least(distance, k, lanes)
    return index.clamp_(max=points.shape[1] - 1)  # where squares overflow, the spare points are as near as any


def _least(values: Tensor, k: int, lanes: int) -> Tensor:
    """Indices of the ``k`` least values of every row, ascending; rows are so many columns of ``lanes`` values."""
    deep = values.shape[1] // lanes
    if deep < 4:
        return values.topk(k, largest=False, sorted=True).indices
    columns = values.view(-1, deep, lanes).amin(1).topk(k, largest=False, sorted=False).indices
    candidates = (columns[:, None] + lanes * torch.arange(deep, device=values.device)[:, None]).flatten(1)
    chosen = values.gather(1, candidates).topk(k, largest=False, sorted=True).indices
    return candidates.gather(1, chosen)


@_nearest.register_fake
def _(points, centers, k):
    return points.new_empty(*centers.shape[:2], k, dtype=torch.int64)
