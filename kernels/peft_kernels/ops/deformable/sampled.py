"""Deformable attention as a sum over bags: each of the four corners is one ``embedding_bag`` over a padded map.

A ring of zeros around the map makes its outside a place like any other, so that the four corners of a sample stand at
fixed distances in one table: four reads of the same indices, each from the table shifted. Nothing of the size of the
samples' values is ever held, in either direction; samples are taken in blocks that fit the cache.

For the backward pass the weights' and places' gradients need the product of the output's gradient with each corner, a
sampled matrix product; the maps' gradient is the transposed sum: bags again, of samples sorted by the cell they read.

FLOPs: ``8 B Q M L K D`` forward, three times that backward. Bytes kept for the backward pass: the three arguments.
``torch.compile`` traces the formula instead, which it fuses into one loop; exporters get the form by ``grid_sample``.
"""

import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .reference import deformable_attention_grid, deformable_attention_reference

BLOCK = 1 << 16  # samples


def deformable_attention(
    value: Float[Tensor, "batch cells heads width"],
    shapes: Sequence[tuple[int, int]],
    locations: Float[Tensor, "batch queries heads levels points 2"],
    weights: Float[Tensor, "batch queries heads levels points"],
) -> Float[Tensor, "batch queries heads*width"]:
    """Weighted bilinear samples of maps, with gradients for maps, places and weights, in the dtype of ``value``.

    Places and weights are best given in float32, whatever the maps' dtype: sums are taken in it.

    Args:
        value: the maps of all levels one after the other, each row-major.
        shapes: rows and columns of each level.
        locations: x before y, in units of the map; what lies outside counts 0.
        weights: a factor for each sample.

    Raises:
        ValueError: the shapes of the arguments do not belong together.
    """
    _check(value, shapes, locations, weights)
    if torch.compiler.is_exporting():
        return deformable_attention_grid(value, shapes, locations, weights)
    if torch.compiler.is_compiling():
        return deformable_attention_reference(value, shapes, locations, weights)
    if not _has_operator(value.device):
        return deformable_attention_grid(value, shapes, locations, weights)
    return _sampled(value, [side for shape in shapes for side in shape], locations, weights)


def _has_operator(device: torch.device) -> bool:
    return device.type == "cpu" or (device.type == "cuda" and find_spec("triton") is not None)


def _check(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> None:
    cells = sum(h * w for h, w in shapes)
    if value.ndim != 4 or value.shape[1] != cells:
        raise ValueError(
            f"value must be [batch, cells, heads, width] with the {cells} cells of maps of {list(shapes)}; "
            f"found {list(value.shape)}"
        )
    expected = [len(value), *locations.shape[1:2], value.shape[2], len(shapes), *locations.shape[4:5], 2]
    if list(locations.shape) != expected:
        raise ValueError(
            f"locations must be [batch, queries, heads, levels, points, 2], here {expected}; "
            f"found {list(locations.shape)}"
        )
    if weights.shape != locations.shape[:-1]:
        raise ValueError(f"weights must be {list(locations.shape[:-1])}, as locations; found {list(weights.shape)}")


class _Level(NamedTuple):
    """One level's map with a ring of zeros, a row of the table for each image, cell and head."""

    table: Tensor  # [images * (height + 2) * (width + 2) * heads, size]
    images: int
    height: int
    width: int
    heads: int

    @property
    def shifts(self) -> tuple[int, ...]:
        """How many rows of the table each corner lies behind the first: top left, top right, bottom left and right."""
        below = (self.width + 2) * self.heads
        return 0, self.heads, below, below + self.heads

    def from_corner(self, corner: int) -> Tensor:
        """The table as seen from this corner, at the first corners' indices."""
        return self.table[self.shifts[corner] : len(self.table) - self.shifts[3] + self.shifts[corner]]

    def unpadded(self, table: Tensor) -> Tensor:
        """Of a table of this form the map, ``[images, cells, heads, size]``."""
        padded = table.view(self.images, self.height + 2, self.width + 2, self.heads, table.shape[1])
        return padded[:, 1:-1, 1:-1].flatten(1, 2)


def _levels(value: Tensor, sides: Sequence[int], dtype: torch.dtype) -> Iterator[_Level]:
    images, _, heads, size = value.shape
    shapes = list(zip(sides[::2], sides[1::2], strict=True))
    for (height, width), cells in zip(shapes, value.split([h * w for h, w in shapes], 1), strict=True):
        padded = F.pad(cells.to(dtype).reshape(images, height, width, heads * size), (0, 0, 1, 1, 1, 1))
        yield _Level(padded.view(-1, size), images, height, width, heads)


class _Samples(NamedTuple):
    """Where a block of samples reads: the table's row of the first corner, and how far beyond it."""

    first: Tensor  # integers [queries * heads, points]
    right: Tensor  # share of the right corners
    below: Tensor  # share of the lower corners
    inside: tuple[Tensor, Tensor]  # whether moving the sample in x, in y moves what it reads

    def shares(self, weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The weight of each corner."""
        low = weights * self.below
        high = weights - low
        high_right, low_right = high * self.right, low * self.right
        return high.sub_(high_right), high_right, low.sub_(low_right), low_right


def _samples(level: _Level, locations: Tensor, images: Tensor) -> _Samples:
    """The samples of a block of queries; ``locations [queries, heads, points, 2]``, ``images [queries]``."""
    # Within the ring: a place beyond it reads zeros as its edge does. NaN stays NaN in the shares, not in the index.
    x, y = locations[..., 0] * level.width - 0.5, locations[..., 1] * level.height - 0.5
    inside = (x >= -1) & (x < level.width), (y >= -1) & (y < level.height)
    x.clamp_(-1, level.width)
    y.clamp_(-1, level.height)
    left, top = x.floor().clamp_(max=level.width - 1), y.floor().clamp_(max=level.height - 1)
    right, below = x.sub_(left), y.sub_(top)
    kind = torch.int32 if len(level.table) < 2**31 else torch.int64
    rows, heads = level.height + 2, torch.arange(level.heads, dtype=kind).view(-1, 1)
    first = top.to(kind).clamp_(min=-1).add_(1).add_((images * rows).to(kind).view(-1, 1, 1))
    first.mul_(level.width + 2).add_(left.to(kind).clamp_(min=-1)).add_(1).mul_(level.heads).add_(heads)
    points = first.shape[-1]
    flat = [t.reshape(-1, points) for t in (first, right, below, *inside)]
    return _Samples(flat[0], flat[1], flat[2], (flat[3], flat[4]))


def _blocks(level: _Level, queries: int, per_query: int, least: int = BLOCK) -> Iterator[tuple[slice, Tensor]]:
    """Slices of all queries of all images, with the image of each query; about ``least`` samples each."""
    step = max(1, least // max(1, per_query))
    count = level.images * queries
    for start in range(0, count, step):
        stop = min(count, start + step)
        yield slice(start, stop), torch.arange(start, stop) // queries


def _compute_dtype(value: Tensor, locations: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(value.dtype, locations.dtype), torch.float32)


@torch.library.custom_op("peft_kernels::deformable_attention", mutates_args=())
def _sampled(value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    batch, queries, heads, _, points, _ = locations.shape
    dtype = _compute_dtype(value, locations)
    total = torch.zeros(batch * queries, heads * value.shape[-1], dtype=dtype)
    with torch.autocast("cpu", enabled=False):
        for index, level in enumerate(_levels(value, sides, dtype)):
            places, factors = (t[:, :, :, index].flatten(0, 1) for t in (locations, weights))
            for part, images in _blocks(level, queries, heads * points):
                samples = _samples(level, places[part].to(dtype), images)
                out = total[part].view(-1, value.shape[-1])
                for corner, share in enumerate(samples.shares(factors[part].to(dtype).reshape(-1, points))):
                    out += F.embedding_bag(
                        samples.first, level.from_corner(corner), per_sample_weights=share, mode="sum"
                    )
    return total.view(batch, queries, heads * value.shape[-1]).to(value.dtype)


@_sampled.register_kernel("cuda")
def _(value, sides, locations, weights):
    from .sampled_triton import sampled

    return sampled(value, sides, locations, weights, _compute_dtype(value, locations)).to(value.dtype)


@_sampled.register_fake
def _(value, sides, locations, weights):
    return value.new_empty(*locations.shape[:2], value.shape[2] * value.shape[3])


@torch.library.custom_op("peft_kernels::deformable_attention_backward", mutates_args=())
def _sampled_backward(
    gy: Tensor, value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor, of_value: bool, of_reads: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, queries, heads, _, points, _ = locations.shape
    dtype = _compute_dtype(value, locations)
    gy = gy.to(dtype).reshape(batch * queries, heads * value.shape[-1])
    maps: list[Tensor] = []
    glocations, gweights = (torch.zeros_like(t) if of_reads else t.new_empty(0) for t in (locations, weights))
    with torch.autocast("cpu", enabled=False):
        for index, level in enumerate(_levels(value, sides, dtype)):
            gtable = torch.zeros_like(level.table) if of_value else None
            places, factors = (t[:, :, :, index].flatten(0, 1) for t in (locations, weights))
            for part, images in _blocks(level, queries, heads * points, max(BLOCK, len(level.table))):
                samples = _samples(level, places[part].to(dtype), images)
                out, share = gy[part].reshape(-1, value.shape[-1]), factors[part].to(dtype).reshape(-1, points)
                if gtable is not None:
                    _scatter(level._replace(table=gtable), samples, share, out)
                if of_reads:
                    to_places, to_factors = _read_gradients(level, samples, share, out)
                    shape = part, slice(None), index
                    glocations.view(-1, *locations.shape[2:])[shape] = to_places.view(-1, heads, points, 2)
                    gweights.view(-1, *weights.shape[2:])[shape] = to_factors.view(-1, heads, points)
            if gtable is not None:
                maps.append(level.unpadded(gtable))
    return (torch.cat(maps, 1).to(value.dtype) if of_value else value.new_empty(0)), glocations, gweights


def _scatter(into: _Level, samples: _Samples, factors: Tensor, out: Tensor) -> None:
    """Add each query's gradient, times the corners' weights, to the cells that it read."""
    order = samples.first.flatten().sort()
    bags = torch.bincount(order.values, minlength=len(into.from_corner(0)))
    ends = F.pad(bags.cumsum(0), (1, 0)).to(samples.first.dtype)
    queries = (order.indices // samples.first.shape[1]).to(samples.first.dtype)
    for corner, share in enumerate(samples.shares(factors)):
        share = share.flatten().take(order.indices)
        into.from_corner(corner).add_(
            F.embedding_bag(queries, out, ends, per_sample_weights=share, mode="sum", include_last_offset=True)
        )


def _read_gradients(level: _Level, samples: _Samples, factors: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of a block's places (in units of the map) and weights."""
    rows, points = samples.first.shape
    columns = samples.first.unsqueeze(-1) + samples.first.new_tensor(level.shifts)
    starts = torch.arange(0, columns.numel() + 1, 4 * points, dtype=columns.dtype)
    read = _products(starts, columns.flatten(), out, level.table).view(rows, points, 4).unbind(-1)
    steps_right = read[1] - read[0], read[3] - read[2]
    high, low = (torch.addcmul(left, step, samples.right) for left, step in zip(read[::2], steps_right, strict=True))
    down = low - high
    across = torch.lerp(*steps_right, samples.below)
    across.mul_(factors).mul_(level.width).mul_(samples.inside[0])
    to_factors = torch.addcmul(high, down, samples.below)
    down.mul_(factors).mul_(level.height).mul_(samples.inside[1])
    return torch.stack((across, down), -1), to_factors


def _products(starts: Tensor, columns: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The entries of ``left rightᵀ`` at the places of a pattern given as compressed rows."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse")  # that compressed rows are in beta
        zeros = torch.zeros(columns.shape, dtype=left.dtype)
        pattern = torch.sparse_csr_tensor(starts, columns, zeros, (len(left), len(right)), check_invariants=False)
        return torch.sparse.sampled_addmm(pattern, left, right.t(), beta=0).values()


@_sampled_backward.register_kernel("cuda")
def _(gy, value, sides, locations, weights, of_value, of_reads):
    from .sampled_triton import sampled_backward

    gy = gy.to(_compute_dtype(value, locations))
    found = sampled_backward(gy, value, sides, locations, weights, of_value, of_reads)
    return tuple(g.to(t.dtype) for g, t in zip(found, (value, locations, weights), strict=True))


@_sampled_backward.register_fake
def _(gy, value, sides, locations, weights, of_value, of_reads):
    return (
        torch.empty_like(value) if of_value else value.new_empty(0),
        torch.empty_like(locations) if of_reads else locations.new_empty(0),
        torch.empty_like(weights) if of_reads else weights.new_empty(0),
    )


def _context(ctx, inputs, output):
    value, ctx.sides, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _gradients(ctx, gy):
    value, locations, weights = ctx.saved_tensors
    of_value, _, of_locations, of_weights = ctx.needs_input_grad
    gvalue, glocations, gweights = _sampled_backward(
        gy, value, ctx.sides, locations, weights, of_value, of_locations or of_weights
    )
    return (
        gvalue if of_value else None,
        None,
        glocations if of_locations else None,
        gweights if of_weights else None,
    )


_sampled.register_autograd(_gradients, setup_context=_context)
