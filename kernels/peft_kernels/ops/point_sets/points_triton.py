"""Farthest points and nearest neighbours in Triton: what runs on CUDA.

A program holds one cloud in registers, for farthest points all the way from the first choice to the last, each of which
costs the plain loop several kernels; for neighbours one centre's distances, from which the least is taken k times.
Ties go to the lowest index. Imported where it is used, because importing Triton takes time.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor


@triton.jit
def _sample(points, chosen, n, count, threshold, N: tl.constexpr):
    cloud = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, N)
    inside, own = i < n, points + cloud * n * 3
    x = tl.load(own + 3 * i, mask=inside, other=0.0)
    y = tl.load(own + 3 * i + 1, mask=inside, other=0.0)
    z = tl.load(own + 3 * i + 2, mask=inside, other=0.0)
    near = (x * x + y * y + z * z <= threshold) & (threshold > 0)
    distance = tl.where(near, -1.0, 1e10).to(x.dtype)
    distance = tl.where(inside, distance, -2.0).to(x.dtype)
    last = tl.zeros((), dtype=tl.int32)
    tl.store(chosen + cloud * count, last.to(tl.int64))
    for k in range(1, count):
        from_x = x - tl.load(own + 3 * last)
        from_y = y - tl.load(own + 3 * last + 1)
        from_z = z - tl.load(own + 3 * last + 2)
        distance = tl.minimum(distance, from_x * from_x + from_y * from_y + from_z * from_z)
        last = tl.argmax(distance, 0).to(tl.int32)
        tl.store(chosen + cloud * count + k, last.to(tl.int64))


@triton.jit
def _nearest(points, centers, index, n, k, N: tl.constexpr):
    centre, cloud = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    row = cloud * tl.num_programs(0) + centre
    i = tl.arange(0, N)
    inside, own = i < n, points + cloud * n * 3
    from_x = tl.load(own + 3 * i, mask=inside, other=0.0) - tl.load(centers + 3 * row)
    from_y = tl.load(own + 3 * i + 1, mask=inside, other=0.0) - tl.load(centers + 3 * row + 1)
    from_z = tl.load(own + 3 * i + 2, mask=inside, other=0.0) - tl.load(centers + 3 * row + 2)
    distance = from_x * from_x + from_y * from_y + from_z * from_z
    distance = tl.where(inside, distance, float("inf"))
    for j in range(k):
        best = tl.argmin(distance, 0)
        tl.store(index + row * k + j, best.to(tl.int64))
        distance = tl.where(i == best, float("inf"), distance)


def farthest(points: Float[Tensor, "batch points 3"], count: int, threshold: float) -> Int[Tensor, "batch count"]:
    """As `farthest_points` has it, where `in_triton` says so."""
    points = points.contiguous()
    chosen = torch.empty(len(points), count, dtype=torch.int64, device=points.device)
    size = triton.next_power_of_2(points.shape[1])
    with torch.cuda.device_of(points):
        _sample[(len(points),)](
            points,
            chosen,
            points.shape[1],
            count,
            threshold,
            tl.constexpr(size),
            num_warps=_warps(size),  # type: ignore[call-arg]
        )
    return chosen


def nearest(
    points: Float[Tensor, "batch points 3"], centers: Float[Tensor, "batch centers 3"], k: int
) -> Int[Tensor, "batch centers k"]:
    """As `nearest_neighbours` has it, where `in_triton` says so."""
    points, centers = points.contiguous(), centers.contiguous()
    index = torch.empty(*centers.shape[:2], k, dtype=torch.int64, device=points.device)
    size = triton.next_power_of_2(points.shape[1])
    with torch.cuda.device_of(points):
        _nearest[(centers.shape[1], len(points))](
            points,
            centers,
            index,
            points.shape[1],
            k,
            tl.constexpr(size),
            num_warps=_warps(size),  # type: ignore[call-arg]
        )
    return index


def _warps(size: int) -> int:
    return min(16, max(1, size // 256))
