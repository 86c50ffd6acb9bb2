"""Frequency band modulation: the bands of a feature map, each scaled by a map of its own.

FDConv (Chen et al., CVPR 2025), section 3.4. With ``L_0 = x``, ``L_i = irfft2(mask_i · rfft2(x))`` what is below the
cut ``k_i`` and ``A_i`` the factors at every place:

    y = Σ_i A_i (L_(i-1) - L_i) + L_K = A_1 x + Σ_i (A_(i+1) - A_i) L_i,    A_(K+1) = 1 unless it is given

The masks are real and even, so that a low pass is its own transpose. FLOPs: ``1 + K`` transforms of x forward,
``3 + 2 K`` backward. Bytes kept for the backward pass: those of x and of the factors; the bands are computed again.
"""

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from ..spectra import at_least_float32

MASKS = ("grid64", "exact")


@lru_cache(maxsize=64)
def band_masks(
    cuts: tuple[float, ...], height: int, width: int, kind: str = "grid64", device: torch.device | None = None
) -> Float[Tensor, "bands H Q"]:
    """The square low passes ``max(|f_h|, |f_w|) < 0.5 / k`` (or equal) over half spectra, float32.

    The first and last column are symmetrised, as a real map takes them.

    Args:
        cuts: k, ascending.
        height: of the map.
        width: of the map.
        kind: ``grid64``, the authors' mask: made for 64 x 64 in float32, then resampled to the nearest entry in the
            transform's order, and a little asymmetric at other sizes; or ``exact``.
        device: of the mask.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in MASKS:
        raise ValueError(f"a mask is one of {', '.join(MASKS)}; found {kind!r}")
    if kind == "exact":
        rows = torch.fft.fftfreq(height, dtype=torch.float64, device="cpu")
        columns = torch.fft.rfftfreq(width, dtype=torch.float64, device="cpu")
    else:
        rows = torch.fft.fftfreq(64, device="cpu")[_nearest(height, 64)]
        columns = torch.fft.rfftfreq(64, device="cpu")[_nearest(width // 2 + 1, 33)]
    limits = torch.tensor([0.5 / cut + 1e-8 for cut in cuts], dtype=rows.dtype, device="cpu")[:, None]
    below = (rows.abs() < limits).float()
    masks = below[:, :, None] * (columns < limits).float()[:, None]
    even = (below + below.flip(1).roll(1, 1)) / 2
    for column in (0, width // 2) if width % 2 == 0 else (0,):
        masks[:, :, column] = masks[:, :, column].amax(1, keepdim=True) * even
    return masks.to(device)


def _nearest(size: int, grid: int) -> Tensor:
    """Which entries of the grid stand for ``size`` ones, rounded as the authors' resampling does, in float32."""
    step = torch.tensor(grid / size, dtype=torch.float32, device="cpu")
    return (torch.arange(size, device="cpu") * step).floor().long().clamp(max=grid - 1)


def band_modulation(
    x: Float[Tensor, "B C H W"], maps: Float[Tensor, "B maps gs H W"], masks: Float[Tensor, "bands H Q"]
) -> Float[Tensor, "B C H W"]:
    """y with gradients for x and the factors, in float32 at least.

    Args:
        x: the feature map.
        maps: A, one for every band, and one more where what is below the last cut has its own; channel ``c`` takes
            the one of group ``c // (C / gs)``.
        masks: of `band_masks`.
    """
    x = at_least_float32(x)
    return _bands(x, maps.to(x.dtype), masks.to(x.dtype))


def _grouped(x: Tensor, count: int) -> Tensor:
    """x as ``[B, gs, C / gs, H, W]``."""
    return x.unflatten(1, (count, -1))


def _steps(maps: Tensor, bands: int) -> list[Tensor]:
    """``A_(i+1) - A_i``, each ``[B, gs, 1, H, W]``."""
    parts = [*maps[:, :, :, None].unbind(1)]
    return [(parts[i + 1] if i + 1 < len(parts) else 1) - parts[i] for i in range(bands)]


@torch.library.custom_op("peft_kernels::band_modulation", mutates_args=())
def _bands(x: Tensor, maps: Tensor, masks: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        count = maps.shape[2]
        spectrum = torch.fft.rfft2(x)
        y = _grouped(x, count) * maps[:, 0, :, None]
        for mask, step in zip(masks, _steps(maps, len(masks)), strict=True):
            y.addcmul_(step, _grouped(torch.fft.irfft2(spectrum * mask, s=x.shape[-2:]), count))
        return y.flatten(1, 2).contiguous()


@_bands.register_fake
def _(x, maps, masks):
    return x.new_empty(x.shape)


@torch.library.custom_op("peft_kernels::band_modulation_backward", mutates_args=())
def _bands_backward(gy: Tensor, x: Tensor, maps: Tensor, masks: Tensor, need_x: bool) -> tuple[Tensor, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        count, size = maps.shape[2], x.shape[-2:]
        spectrum = torch.fft.rfft2(x)
        outer = _grouped(gy, count)
        gmaps = torch.empty_like(maps)
        lower = (outer * _grouped(x, count)).sum(2)
        for i, mask in enumerate(masks):
            upper = lower
            lower = (outer * _grouped(torch.fft.irfft2(spectrum * mask, s=size), count)).sum(2)
            gmaps[:, i] = upper - lower
        if maps.shape[1] > len(masks):
            gmaps[:, -1] = lower
        if not need_x:
            return x.new_empty(0), gmaps
        passed = torch.zeros_like(spectrum)
        for mask, step in zip(masks, _steps(maps, len(masks)), strict=True):
            passed.addcmul_(torch.fft.rfft2((outer * step).flatten(1, 2)), mask.to(passed.dtype))
        gx = torch.fft.irfft2(passed, s=size)
        return gx.add_((outer * maps[:, 0, :, None]).flatten(1, 2)), gmaps


@_bands_backward.register_fake
def _(gy, x, maps, masks, need_x):
    return x.new_empty(x.shape if need_x else 0), torch.empty_like(maps)


def _context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _gradients(ctx, gy):
    need_x, need_maps, _ = ctx.needs_input_grad
    gx, gmaps = _bands_backward(gy, *ctx.saved_tensors, need_x)
    return gx if need_x else None, gmaps if need_maps else None, None


_bands.register_autograd(_gradients, setup_context=_context)
