"""Clouds as pictures that keep their geometry (P2P, Wang et al., NeurIPS 2022, arXiv 2208.02812).

With the larger of a cloud's two ranges as its size, g = size / (S − 3) is a pixel's side. A point at (x, y) falls on

    (i, j) = ⌊((x, y) − min) / g⌋,    and all are moved by S/2 − ⌊(max + min)/2⌋ − 1, so that the picture is centred

Each point paints the 3 × 3 pixels around its own, and what falls on one pixel is summed: nothing hides anything. The
first axis goes down the rows, as in the released code. Moving a cloud, or scaling it, changes no pixel.

Bytes: 9 · points · channels are added to batch · S² · channels.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .clouds import check_clouds


def pixel_places(points: Float[Tensor, "batch points 3"], size: int) -> Int[Tensor, "batch points 2"]:
    """Row and column of every point, 1 to ``size − 2``; a cloud without extent falls on one pixel in the middle.

    Raises:
        ValueError: no finite clouds, or a picture of fewer than 4 pixels a side.
    """
    check_clouds(points)
    if size < 4:
        raise ValueError(f"a picture of a cloud needs at least 4 pixels a side; found {size}")
    plane = points.detach()[..., :2]
    low = plane.amin(1, keepdim=True)
    extent = (plane.amax(1, keepdim=True) - low).amax(-1, keepdim=True)
    extent = torch.where(extent > 0, extent, torch.ones_like(extent))
    index = ((plane - low) / extent * (size - 3)).floor().to(torch.int64)
    middle = (index.amax(1, keepdim=True) + index.amin(1, keepdim=True)) // 2
    return (index + size // 2 - middle - 1).clamp_(1, size - 2)


def painted(
    features: Float[Tensor, "batch points channels"], places: Int[Tensor, "batch points 2"], size: int
) -> Float[Tensor, "batch size size channels"]:
    """The sum of the features of all points around every pixel; gradients pass to the features.

    On CUDA the order of summation varies unless `torch.use_deterministic_algorithms` is on.
    """
    batch, _, channels = features.shape
    step = torch.arange(-1, 2, device=places.device)
    around = (step[:, None] * size + step).flatten()  # nine neighbours in a flat picture
    cloud = torch.arange(batch, device=places.device)[:, None] * size * size
    flat = places[..., 0] * size + places[..., 1] + cloud
    picture = features.new_zeros(batch * size * size, channels)
    rows = features.reshape(-1, channels)
    for offset in around:
        picture = picture.index_add(0, (flat + offset).flatten(), rows)
    return picture.view(batch, size, size, channels)
