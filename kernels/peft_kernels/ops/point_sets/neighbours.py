"""The nearest points of a cloud to some centres, and the patches they form.

Squared distances come from coordinate differences. `torch.cdist` expands the square as soon as there are more than 25
points, and rounds small distances to nonsense then: neighbours swap, and a centre may not be its own nearest point. All
pairs are never held at once, but blocks of centres that fit the cache.

FLOPs: 8 · batch · centres · points, and a partial sort of every row.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .clouds import check_clouds, check_count

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
    x, c = points.mT.contiguous(), centers.mT.contiguous()
    index = torch.empty(*centers.shape[:2], k, dtype=torch.int64, device=points.device)
    step = max(1, _BLOCK // points.shape[1])
    for cloud in range(len(points)):
        for first in range(0, centers.shape[1], step):
            near = c[cloud, :, first : first + step, None]
            distance = (x[cloud, 0] - near[0]).square_()
            for axis in (1, 2):
                difference = x[cloud, axis] - near[axis]
                distance.addcmul_(difference, difference)
            index[cloud, first : first + step] = distance.topk(k, largest=False, sorted=True).indices
    return index


@_nearest.register_fake
def _(points, centers, k):
    return points.new_empty(*centers.shape[:2], k, dtype=torch.int64)
