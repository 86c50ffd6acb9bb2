"""Deformable attention in Triton: what runs on CUDA.

A program reads the samples of some queries of one head, the head's width in its lanes, and holds nothing else; backward
reads them again and adds to the maps' gradient atomically. One launch a level; sums are taken in float32 (float64 for
float64 maps). Imported where it is used, because importing Triton takes time.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_QUERIES = 16


@triton.jit
def _place(locations, at, known, side, kind: tl.constexpr):
    # As far as two cells out, where every corner lies outside: infinity reads zeros, and what is no number stays so.
    place = tl.load(locations + at, mask=known, other=0.0).to(kind) * side - 0.5
    return tl.clamp(place, -2.0 + tl.zeros_like(place), side + tl.zeros_like(place), tl.PropagateNan.ALL)


@triton.jit
def _corner(value, base, row, column, height, width, heads, size, lane, kind: tl.constexpr):
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    cell = tl.where(inside, row, 0.0).to(tl.int64) * width + tl.where(inside, column, 0.0).to(tl.int64)
    places = (base + cell * heads)[:, None] * size + lane[None, :]
    inside = inside[:, None] & (lane < size)[None, :]
    return places, inside, tl.load(value + places, mask=inside, other=0.0).to(kind)


@triton.jit
def _forward(
    value, locations, weights, out, count, queries, cells, heads, size, height, width,
    POINTS: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    query = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    lane, known = tl.arange(0, LANES), query < count
    base = query // queries * cells * heads + head
    kind: tl.constexpr = out.dtype.element_ty
    place = (query * heads + head)[:, None] * size + lane[None, :]
    written = known[:, None] & (lane < size)[None, :]
    total = tl.load(out + place, mask=written, other=0.0)
    for k in range(POINTS):
        at = (query * heads + head) * POINTS + k
        x, y = _place(locations, 2 * at, known, width, kind), _place(locations, 2 * at + 1, known, height, kind)
        weight = tl.load(weights + at, mask=known, other=0.0).to(kind)
        left, top = tl.floor(x), tl.floor(y)
        for corner in tl.static_range(4):  # pyright: ignore[reportGeneralTypeIssues]
            row, column = top + corner // 2, left + corner % 2
            share = (1 - tl.abs(y - row)) * (1 - tl.abs(x - column)) * weight
            _, _, read = _corner(value, base, row, column, height, width, heads, size, lane, kind)
            total += share[:, None] * read
    tl.store(out + place, total, mask=written)


@triton.jit
def _backward(
    gy, value, locations, weights, gvalue, glocations, gweights, count, queries, cells, heads, size, height, width,
    POINTS: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr, OF_VALUE: tl.constexpr, OF_READS: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    query = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    lane, known = tl.arange(0, LANES), query < count
    base = query // queries * cells * heads + head
    kind: tl.constexpr = gy.dtype.element_ty
    place = (query * heads + head)[:, None] * size + lane[None, :]
    coming = tl.load(gy + place, mask=known[:, None] & (lane < size)[None, :], other=0.0)
    for k in range(POINTS):
        at = (query * heads + head) * POINTS + k
        x, y = _place(locations, 2 * at, known, width, kind), _place(locations, 2 * at + 1, known, height, kind)
        weight = tl.load(weights + at, mask=known, other=0.0).to(kind)
        left, top = tl.floor(x), tl.floor(y)
        of_x, of_y, of_weight = tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x)
        for corner in tl.static_range(4):  # pyright: ignore[reportGeneralTypeIssues]
            row, column = top + corner // 2, left + corner % 2
            across, down = 1 - tl.abs(x - column), 1 - tl.abs(y - row)
            places, inside, read = _corner(value, base, row, column, height, width, heads, size, lane, kind)
            if OF_READS:
                product = tl.sum(coming * read, 1)
                of_weight += across * down * product
                of_x += (2 * (corner % 2) - 1) * down * product
                of_y += (2 * (corner // 2) - 1) * across * product
            if OF_VALUE:
                share = across * down * weight
                tl.atomic_add(gvalue + places, share[:, None] * coming, mask=inside & known[:, None])
        if OF_READS:
            tl.store(gweights + at, of_weight, mask=known)
            tl.store(glocations + 2 * at, of_x * weight * width, mask=known)
            tl.store(glocations + 2 * at + 1, of_y * weight * height, mask=known)


def _levels(value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor) -> Iterator[tuple[int, Any, Any]]:
    """Each level's number, its map, places and weights, and its sizes."""
    batch, queries, heads = weights.shape[:3]
    shapes = list(zip(sides[::2], sides[1::2], strict=True))
    for index, cells in enumerate(value.split([h * w for h, w in shapes], 1)):
        own = locations[:, :, :, index].contiguous(), weights[:, :, :, index].contiguous()
        numbers = batch * queries, queries, cells.shape[1], heads, value.shape[-1], *shapes[index]
        yield index, (cells.contiguous(), *own), numbers


def _launch(value: Tensor, weights: Tensor) -> tuple[tuple[int, int], dict[str, Any]]:
    """The grid of programs and what they are compiled for."""
    lanes = max(2, triton.next_power_of_2(value.shape[-1]))
    grid = triton.cdiv(weights.shape[0] * weights.shape[1], _QUERIES), weights.shape[2]
    return grid, {"POINTS": weights.shape[-1], "LANES": lanes, "ROWS": _QUERIES}


def sampled(value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """The sums ``[batch, queries, heads * width]`` in ``dtype``, the arguments as those of the operator."""
    out = torch.zeros(*weights.shape[:3], value.shape[-1], dtype=dtype, device=value.device)
    grid, constants = _launch(value, weights)
    if out.numel():
        with torch.cuda.device_of(out):
            for _, tensors, numbers in _levels(value, sides, locations, weights):
                _forward[grid](*tensors, out, *numbers, **constants)  # pyright: ignore[reportCallIssue]
    return out.flatten(2)


def sampled_backward(
    gy: Tensor, value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor, of_value: bool, of_reads: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of maps, places and weights in the dtype of ``gy``; empty where they are not asked for."""
    gy = gy.contiguous()
    grid, constants = _launch(value, weights)
    constants |= {"OF_VALUE": of_value, "OF_READS": of_reads}
    maps: list[Tensor] = []
    every = [torch.zeros_like(t if of_reads else t[:0], dtype=gy.dtype) for t in (locations, weights)]
    with torch.cuda.device_of(gy):
        for index, tensors, numbers in _levels(value, sides, locations, weights):
            gcells = torch.zeros_like(tensors[0] if of_value else tensors[0][:0], dtype=gy.dtype)
            own = [torch.zeros_like(t if of_reads else t[:0], dtype=gy.dtype) for t in tensors[1:]]
            if gy.numel():
                _backward[grid](gy, *tensors, gcells, *own, *numbers, **constants)  # pyright: ignore[reportCallIssue]
            maps.append(gcells)
            for whole, part in zip(every, own, strict=True):
                whole[:, :, :, index] = part
    return torch.cat(maps, 1), every[0], every[1]
