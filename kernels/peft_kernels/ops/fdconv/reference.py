"""The formulas of FDConv as they stand, differentiable: the truth for the fused operators."""

from itertools import pairwise

import torch
from jaxtyping import Complex, Float, Int16
from torch import Tensor
from torch.nn import functional as F

from .spectrum import folded, inverse


def modulated_spectrum(
    spectrum: Float[Tensor, "copies P1 Q 2"],
    gains: Float[Tensor, "B copies n"],
    groups: Int16[Tensor, "P1 Q"],
) -> Complex[Tensor, "B P1 Q"]:
    """``Σ_i θ_i[p, q] g[b, i, G[p, q]]``: each group of frequencies by its gain."""
    chosen = gains.flatten(0, 1).index_select(1, groups.flatten().int()).view(*gains.shape[:2], *groups.shape)
    if len(spectrum) == 1:
        return torch.view_as_complex(spectrum)[0] * chosen[:, 0]
    return (torch.view_as_complex(spectrum) * chosen).sum(1)


def local_factors(
    pooled: Float[Tensor, "B Ci"], local: Float[Tensor, "O kappa"], multiplier: float
) -> Float[Tensor, "B O Ci"]:
    """``m σ(q)``, ``q[b, o, ci] = Σ_t w[o, t] pooled[b, ci + t - (κ-1)/2]``."""
    logits = F.conv1d(pooled[:, None], local[:, None], padding=local.shape[1] // 2)
    return multiplier * torch.sigmoid(logits)


def sample_kernels(
    spectrum: Float[Tensor, "copies P1 Q 2"],
    gains: Float[Tensor, "B copies n"],
    groups: Int16[Tensor, "P1 Q"],
    size: tuple[int, int, int],
    filters: Float[Tensor, "B Co"] | None = None,
    taps: Float[Tensor, "B k1 k2"] | None = None,
    columns: Float[Tensor, "B Ci"] | None = None,
    pooled: Float[Tensor, "B Ci"] | None = None,
    local: Float[Tensor, "O kappa"] | None = None,
    multiplier: float = 2.0,
) -> Float[Tensor, "B Co Ci k1 k2"]:
    """See `fdconv.sample_kernels`."""
    channels, k1, k2 = size
    kernels = folded(inverse(modulated_spectrum(spectrum, gains, groups), channels * k2), k1, k2)
    return scaled(kernels, filters, taps, columns, pooled, local, multiplier)


def scaled(
    kernels: Float[Tensor, "B Co Ci k1 k2"],
    filters: Float[Tensor, "B Co"] | None,
    taps: Float[Tensor, "B k1 k2"] | None,
    columns: Float[Tensor, "B Ci"] | None,
    pooled: Float[Tensor, "B Ci"] | None,
    local: Float[Tensor, "O kappa"] | None,
    multiplier: float,
) -> Float[Tensor, "B Co Ci k1 k2"]:
    """The kernels times all factors that there are."""
    if pooled is not None and local is not None:
        factors = local_factors(pooled, local, multiplier)
        kernels = kernels * factors.unflatten(1, (-1, *kernels.shape[-2:])).movedim(-1, 2)
    if filters is not None:
        kernels = kernels * filters[:, :, None, None, None]
    if taps is not None:
        kernels = kernels * taps[:, None, None]
    return kernels if columns is None else kernels * columns[:, None, :, None, None]


def band_modulation(
    x: Float[Tensor, "B C H W"], maps: Float[Tensor, "B maps gs H W"], masks: Float[Tensor, "bands H Q"]
) -> Float[Tensor, "B C H W"]:
    """See `fdconv.band_modulation`."""
    spectrum = torch.fft.rfft2(x)
    levels = [x, *(torch.fft.irfft2(spectrum * mask, s=x.shape[-2:]) for mask in masks)]
    bands = [upper - lower for upper, lower in pairwise(levels)]
    whole = maps.repeat_interleave(x.shape[1] // maps.shape[2], 2)
    y = sum(whole[:, i] * band for i, band in enumerate(bands))
    return y + (whole[:, len(masks)] * levels[-1] if maps.shape[1] > len(masks) else levels[-1])
