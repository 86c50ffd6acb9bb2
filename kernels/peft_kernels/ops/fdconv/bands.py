"""Frequency band modulation: the bands of a feature map, each scaled by a map of its own.

FDConv (Chen et al., CVPR 2025), section 3.4. With ``L_0 = x``, ``L_i = irfft2(mask_i · rfft2(x))`` what is below the
cut ``k_i`` and ``A_i`` the factors at every place:

    y = Σ_i A_i (L_(i-1) - L_i) + L_K = A_1 x + Σ_i (A_(i+1) - A_i) L_i,    A_(K+1) = 1 unless it is given

A low pass keeps few frequencies, so that its transforms are products with the few sines and cosines, first along the
rows, then along the columns; the bands are nested, and one transform of x serves them all. FLOPs per pixel: about
``2.5 (H + W)`` forward, twice that backward. Bytes kept for the backward pass: those of x, of its frequencies below the
first cut (at most half of x) and of the factors; the bands are computed again.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from ..spectra import at_least_float32
from . import exported

MASKS = ("grid64", "exact")


def low_passes(cuts: tuple[float, ...], height: int, width: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Which rows and columns of the half spectrum each low pass keeps, ``[bands, H]`` and ``[bands, Q]``.

    In numpy, so that it has values where tensors have none: while a graph is traced.
    """
    if kind not in MASKS:
        raise ValueError(f"a mask is one of {', '.join(MASKS)}; found {kind!r}")
    if kind == "exact":
        rows, columns = np.fft.fftfreq(height), np.fft.rfftfreq(width)
    else:
        rows = np.fft.fftfreq(64).astype(np.float32)[_nearest(height, 64)]
        columns = np.fft.rfftfreq(64).astype(np.float32)[_nearest(width // 2 + 1, 33)]
    limits = np.array([0.5 / cut + 1e-8 for cut in cuts], dtype=rows.dtype)[:, None]
    return np.abs(rows) < limits, columns < limits


def _nearest(size: int, grid: int) -> np.ndarray:
    """Which entries of the grid stand for ``size`` ones, rounded as the authors' resampling does, in float32."""
    places = np.arange(size, dtype=np.float32) * np.float32(grid / size)
    return np.floor(places).astype(np.int64).clip(max=grid - 1)


def _extents(cuts: tuple[float, ...], height: int, width: int, kind: str) -> list[tuple[int, int]]:
    """How many rows and columns each low pass keeps."""
    rows, columns = low_passes(cuts, height, width, kind)
    return [(int(row.sum()), int(column.sum())) for row, column in zip(rows, columns, strict=True)]


def band_masks(cuts: tuple[float, ...], height: int, width: int, kind: str = "grid64") -> Float[Tensor, "bands H Q"]:
    """The square low passes ``max(|f_h|, |f_w|) < 0.5 / k`` (or equal) over half spectra, float32, on the CPU.

    The first and last column are symmetrised, as a real map takes them.

    Args:
        cuts: k, ascending.
        height: of the map.
        width: of the map.
        kind: ``grid64``, the authors' mask: made for 64 x 64 in float32, then resampled to the nearest entry in the
            transform's order, and a little asymmetric at other sizes; or ``exact``.

    Raises:
        ValueError: an unknown kind.
    """
    rows, columns = (torch.from_numpy(kept).float() for kept in low_passes(cuts, height, width, kind))
    masks = rows[:, :, None] * columns[:, None]
    even = (rows + rows.flip(1).roll(1, 1)) / 2
    for column in (0, width // 2) if width % 2 == 0 else (0,):
        masks[:, :, column] = masks[:, :, column].amax(1, keepdim=True) * even
    return masks


class _Bases(NamedTuple):
    """What the low passes keep: frequencies ``p`` of the rows and ``q`` of the columns, those of the last band first.

    Attributes:
        rows: ``exp(-2πi p h / H)``, ``[p, H]``.
        rows_back: its adjoint.
        columns: cosines and sines beside each other, ``[W, 2 q]``.
        columns_back: ``[2 q, W]``, the transform's scale in it.
        extents: how many of both each band keeps.
    """

    rows: Complex[Tensor, "p H"]
    rows_back: Complex[Tensor, "H p"]
    columns: Float[Tensor, "W q2"]
    columns_back: Float[Tensor, "q2 W"]
    extents: list[tuple[int, int]]


@lru_cache(maxsize=64)
def _bases(
    cuts: tuple[float, ...], height: int, width: int, kind: str, dtype: torch.dtype, device: torch.device
) -> _Bases:
    extents = _extents(cuts, height, width, kind)
    rows = torch.from_numpy(low_passes(cuts, height, width, kind)[0])
    kept = rows.sum(0).argsort(descending=True, stable=True)[: extents[0][0]]
    down = _waves(kept, torch.arange(height, device="cpu"), height)
    count = extents[0][1]
    across = _waves(torch.arange(width, device="cpu"), torch.arange(count, device="cpu"), width)
    stands_for = torch.tensor([1 if 2 * q in (0, width) else 2 for q in range(count)], device="cpu")
    back = torch.view_as_real(across * stands_for / (height * width)).flatten(1).T
    return _Bases(
        down.to(device, dtype.to_complex()),
        down.conj_physical().T.contiguous().to(device, dtype.to_complex()),
        torch.view_as_real(across).flatten(1).to(device, dtype),
        back.contiguous().to(device, dtype),
        extents,
    )


def _waves(one: Tensor, other: Tensor, length: int) -> Complex[Tensor, "one other"]:
    """``exp(-2πi a b / length)`` for all pairs."""
    angles = (torch.outer(one, other) % length).double() * (-2 * math.pi / length)
    return torch.polar(torch.ones_like(angles), angles)


def band_modulation(
    x: Float[Tensor, "B C H W"],
    maps: Float[Tensor, "B maps gs H W"],
    cuts: tuple[float, ...],
    kind: str = "grid64",
) -> Float[Tensor, "B C H W"]:
    """y with gradients for x and the factors, in float32 at least.

    Args:
        x: the feature map.
        maps: A, one for every band, and one more where what is below the last cut has its own; channel ``c`` takes
            the one of group ``c // (C / gs)``.
        cuts: see `band_masks`.
        kind: see `band_masks`.
    """
    x = at_least_float32(x)
    if torch.compiler.is_exporting():
        rows, columns = low_passes(cuts, x.shape[-2], x.shape[-1], kind)
        return exported.band_modulation(x, maps.to(x.dtype), rows, columns)
    return _bands(x, maps.to(x.dtype), list(cuts), kind)[0]


def _of(x: Tensor, cuts: list[float], kind: str) -> _Bases:
    return _bases(tuple(cuts), *x.shape[-2:], kind, x.dtype, x.device)


def _transform(x: Tensor, bases: _Bases, band: int = 0) -> Complex[Tensor, "B C p q"]:
    """The frequencies of x that the band's low pass keeps."""
    height, width = bases.extents[band]
    columns = torch.matmul(x, bases.columns[:, : 2 * width])
    return torch.matmul(bases.rows[:height], torch.view_as_complex(columns.unflatten(-1, (width, 2))))


def _low_pass(spectrum: Tensor, bases: _Bases, out: Tensor, band: int = 0) -> Float[Tensor, "B C H W"]:
    """Of a map with these frequencies, written to `out`."""
    height, width = bases.extents[band]
    columns = torch.view_as_real(torch.matmul(bases.rows_back[:, :height], spectrum[..., :height, :width]))
    torch.mm(columns.view(-1, 2 * width), bases.columns_back[: 2 * width], out=out.view(-1, out.shape[-1]))
    return out


def _grouped(x: Tensor, count: int) -> Tensor:
    """x as ``[B, gs, C / gs, H, W]``."""
    return x.unflatten(1, (count, -1))


def _steps(maps: Tensor, bands: int) -> list[Tensor]:
    """``A_(i+1) - A_i``, each ``[B, gs, 1, H, W]``."""
    parts = [*maps[:, :, :, None].unbind(1)]
    return [(parts[i + 1] if i + 1 < len(parts) else 1) - parts[i] for i in range(bands)]


@torch.library.custom_op("peft_kernels::band_modulation", mutates_args=())
def _bands(x: Tensor, maps: Tensor, cuts: list[float], kind: str) -> tuple[Tensor, Tensor]:
    """y, and what the backward pass takes again: the frequencies that the first low pass keeps."""
    with torch.autocast(x.device.type, enabled=False):
        count, bases = maps.shape[2], _of(x, cuts, kind)
        x = x.contiguous()
        spectrum = _transform(x, bases)
        y = _grouped(x, count) * maps[:, 0, :, None]
        room = torch.empty_like(x)
        for band, step in enumerate(_steps(maps, len(cuts))):
            y.addcmul_(step, _grouped(_low_pass(spectrum, bases, room, band), count))
        return y.flatten(1, 2), spectrum


@_bands.register_fake
def _(x, maps, cuts, kind):
    kept = _extents(tuple(cuts), int(x.shape[2]), int(x.shape[3]), kind)[0]
    return x.new_empty(x.shape), x.new_empty((*x.shape[:2], *kept), dtype=x.dtype.to_complex())


@torch.library.custom_op("peft_kernels::band_modulation_backward", mutates_args=())
def _bands_backward(
    gy: Tensor, x: Tensor, maps: Tensor, spectrum: Tensor, cuts: list[float], kind: str, need_x: bool
) -> tuple[Tensor, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        count, bases = maps.shape[2], _of(x, cuts, kind)
        gy = gy.contiguous()
        outer = _grouped(gy, count)
        gmaps = maps.new_empty(maps.shape)
        room = x.contiguous() * gy
        lower = _grouped(room, count).sum(2)
        for band in range(len(cuts)):
            upper = lower
            low = _low_pass(spectrum, bases, room, band)
            lower = _grouped(low, count).mul_(outer).sum(2)
            gmaps[:, band] = upper - lower
        if maps.shape[1] > len(cuts):
            gmaps[:, -1] = lower
        if not need_x:
            return x.new_empty(0), gmaps
        passed = torch.zeros_like(spectrum)  # a low pass is its own transpose
        for band, step in enumerate(_steps(maps, len(cuts))):
            height, width = bases.extents[band]
            torch.mul(outer, step, out=_grouped(room, count))
            passed[..., :height, :width] += _transform(room, bases, band)
        gx = _low_pass(passed, bases, room)
        return _grouped(gx, count).addcmul_(outer, maps[:, 0, :, None]).flatten(1, 2), gmaps


@_bands_backward.register_fake
def _(gy, x, maps, spectrum, cuts, kind, need_x):
    return x.new_empty(x.shape if need_x else 0), maps.new_empty(maps.shape)


def _context(ctx, inputs, output):
    x, maps, ctx.cuts, ctx.kind = inputs
    ctx.save_for_backward(x, maps, output[1])
    ctx.set_materialize_grads(False)  # nothing else takes the frequencies


def _gradients(ctx, gy, _):
    if gy is None:
        return None, None, None, None
    need_x, need_maps = ctx.needs_input_grad[:2]
    gx, gmaps = _bands_backward(gy, *ctx.saved_tensors, ctx.cuts, ctx.kind, need_x)
    return gx if need_x else None, gmaps if need_maps else None, None, None


_bands.register_autograd(_gradients, setup_context=_context)
