"""Edges of pictures by Sobel's filter on the luma: as slopes, as thin lines, and how far apart those of two are (HiPA).

Luma 0.299 R + 0.587 G + 0.114 B; border pixels repeated; horizontally [[-1,0,1],[-2,0,2],[-1,0,1]]/8, vertically its
transpose. The filter is linear, so that the squared distance of gradients takes one pass, over the difference.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from .spectra import at_least_float32

LUMA = (0.299, 0.587, 0.114)
FORMS = ("gradient", "magnitude")
FLAT = 1e-6  # under the root of a magnitude, which has no slope at 0


def sobel(
    pictures: Float[Tensor, "batch 3 height width"],
) -> tuple[Float[Tensor, "batch 1 height width"], Float[Tensor, "batch 1 height width"]]:
    """Horizontal and vertical slope of the luma, in float32 at least.

    Raises:
        ValueError: the pictures have no three channels.
    """
    if pictures.ndim != 4 or pictures.shape[1] != 3:
        raise ValueError(f"edges are those of pictures [N, 3, H, W]; found {list(pictures.shape)}")
    pictures = at_least_float32(pictures)
    red, green, blue = pictures.split(1, 1)
    padded = F.pad(LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue, (1, 1, 1, 1), mode="replicate")
    smooth_rows = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    smooth_columns = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    across = (smooth_rows[..., 2:] - smooth_rows[..., :-2]) / 8
    down = (smooth_columns[..., 2:, :] - smooth_columns[..., :-2, :]) / 8
    return across, down


def edge_lines(
    pictures: Float[Tensor, "batch 3 height width"], threshold: float
) -> Bool[Tensor, "batch 1 height width"]:
    """Where a slope is above `threshold` and the steepest across its line (Canny's thinning): lines of one pixel.

    A step between two values that differ by d has a slope of d / 2.
    """
    across, down = sobel(pictures)
    steepness = torch.hypot(across, down)
    height, width = steepness.shape[-2:]
    padded = F.pad(steepness, (1, 1, 1, 1))
    direction = (torch.atan2(down, across) * 4 / torch.pi).round() % 4
    found = torch.zeros_like(steepness, dtype=torch.bool)
    for number, (y, x) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        ahead = padded[..., 1 + y : 1 + y + height, 1 + x : 1 + x + width]
        behind = padded[..., 1 - y : 1 - y + height, 1 - x : 1 - x + width]
        found |= (direction == number) & (steepness > ahead) & (steepness >= behind)  # of two alike, one
    return found & (steepness > threshold)


def edge_distance(
    found: Float[Tensor, "batch 3 height width"], wanted: Float[Tensor, "batch 3 height width"], form: str = "gradient"
) -> Float[Tensor, ""]:
    """Mean squared difference of the edges.

    Args:
        found: pictures, with gradient.
        wanted: pictures that they should be.
        form: `gradient` compares both slopes, `magnitude` the root of the sum of their squares.

    Raises:
        ValueError: pictures of different shapes, or without three channels, or an unknown form.
    """
    if found.shape != wanted.shape:
        raise ValueError(f"pictures of one shape are compared; found {list(found.shape)} and {list(wanted.shape)}")
    if form not in FORMS:
        raise ValueError(f"edges are compared as one of {', '.join(FORMS)}; found {form!r}")
    if form == "gradient":
        across, down = sobel(at_least_float32(found) - at_least_float32(wanted))
        return (across.square() + down.square()).mean()
    return (_magnitude(found) - _magnitude(wanted)).square().mean()


def _magnitude(pictures: Tensor) -> Tensor:
    across, down = sobel(pictures)
    return torch.sqrt(across.square() + down.square() + FLAT)
