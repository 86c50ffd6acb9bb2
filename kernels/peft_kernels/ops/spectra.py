"""High frequencies of pictures: radial masks, high-pass pictures, and the distance of two high-pass spectra (HiPA).

ρ = 2 √(f_y² + f_x²) with f in cycles a pixel, so that 0 ≤ ρ ≤ √2; a mask M(ρ) is 0 at ρ = 0: mean colours do not count.
With the unitary transform F and d = x - y over N = batch · channels · height · width numbers, the distance is

    Σ |M F d|² / N    or    Σ |M F d| / N

The first is the mean square of the high-pass difference (Parseval). Everything is real and M even: half of the spectrum
holds it all, its inner columns counted twice, and the gradient is one transform back, Fᵀ(M φ'(M F d)) / N. One half
spectrum, as large as the pictures, is kept for it. FLOPs: 2.5 N log₂(height · width), and as many for the gradient.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Shape = Literal["ideal", "gaussian", "butterworth"]
SHAPES = ("ideal", "gaussian", "butterworth")
DISTANCES = ("l2", "l1")


def radial_frequency(height: int, width: int, device: torch.device | None = None) -> Float[Tensor, "height width"]:
    """ρ in the order of `torch.fft.fftfreq`, float64."""
    rows = torch.fft.fftfreq(height, dtype=torch.float64, device=device)[:, None]
    columns = torch.fft.fftfreq(width, dtype=torch.float64, device=device)
    return 2 * (rows.square() + columns.square()).sqrt()


def highpass_mask(
    shape: str, height: int, width: int, cutoff: float, order: int = 2, device: torch.device | None = None
) -> Float[Tensor, "height width"]:
    """M in the order of `torch.fft.fftfreq`, float64.

    Args:
        shape: `ideal` (ρ > c), `gaussian` (1 - exp(-ρ² / 2c²)) or `butterworth` (ρ²ⁿ / (c²ⁿ + ρ²ⁿ)).
        height: of the pictures.
        width: of the pictures.
        cutoff: c, above 0 and below √2.
        order: n of `butterworth`.
        device: of the mask.

    Raises:
        ValueError: an unknown shape, or a cutoff or order out of range.
    """
    if shape not in SHAPES:
        raise ValueError(f"a mask is one of {', '.join(SHAPES)}; found {shape!r}")
    if not 0 < cutoff < math.sqrt(2):
        raise ValueError(f"cutoff must be above 0 and below √2 (2 × cycles a pixel); found {cutoff!r}")
    if order < 1:
        raise ValueError(f"order must be at least 1; found {order!r}")
    rho = radial_frequency(height, width, device)
    if shape == "ideal":
        return (rho > cutoff).double()
    if shape == "gaussian":
        return -torch.expm1(-rho.square() / (2 * cutoff**2))
    return rho ** (2 * order) / (cutoff ** (2 * order) + rho ** (2 * order))


def highpass(
    pictures: Float[Tensor, "batch channels height width"], mask: Float[Tensor, "height width"]
) -> Float[Tensor, "batch channels height width"]:
    """The high frequencies of pictures, as pictures."""
    pictures = at_least_float32(pictures)
    with torch.autocast(pictures.device.type, enabled=False):
        spectrum = torch.fft.rfft2(pictures) * half(mask).to(pictures)
        return torch.fft.irfft2(spectrum, s=pictures.shape[-2:])


def spectral_distance_reference(
    found: Float[Tensor, "batch channels height width"],
    wanted: Float[Tensor, "batch channels height width"],
    mask: Float[Tensor, "height width"],
    distance: str = "l2",
) -> Float[Tensor, ""]:
    """The distance as the formulas stand, by two whole spectra."""
    spectrum = mask * (torch.fft.fft2(found, norm="ortho") - torch.fft.fft2(wanted, norm="ortho"))
    return spectrum.abs().mean() if distance == "l1" else spectrum.abs().square().mean()


def spectral_distance(
    found: Float[Tensor, "batch channels height width"],
    wanted: Float[Tensor, "batch channels height width"],
    mask: Float[Tensor, "height width"],
    distance: str = "l2",
) -> Float[Tensor, ""]:
    """The distance, in float32 at least, whatever autocast says.

    Args:
        found: pictures, with gradient.
        wanted: pictures that they should be.
        mask: M, of `highpass_mask`.
        distance: `l2` (mean square) or `l1` (mean magnitude).

    Raises:
        ValueError: pictures of different shapes, a mask of another size, or an unknown distance.
    """
    if found.shape != wanted.shape or mask.shape != found.shape[-2:]:
        raise ValueError(
            "pictures of one shape [N, C, H, W] and a mask [H, W] are compared; "
            f"found {list(found.shape)}, {list(wanted.shape)} and {list(mask.shape)}"
        )
    if distance not in DISTANCES:
        raise ValueError(f"a distance is one of {', '.join(DISTANCES)}; found {distance!r}")
    difference = at_least_float32(found) - at_least_float32(wanted)
    return _distance(difference, half(mask).to(difference), distance == "l1")[0]


def at_least_float32(pictures: Tensor) -> Tensor:
    """Transforms in half precision are inexact, or not there at all."""
    return pictures.float() if pictures.dtype.itemsize < 4 else pictures


def half(mask: Float[Tensor, "height width"]) -> Float[Tensor, "height columns"]:
    """The columns of a half spectrum."""
    return mask[:, : mask.shape[1] // 2 + 1]


@torch.library.custom_op("peft_kernels::spectral_distance", mutates_args=())
def _distance(difference: Tensor, mask: Tensor, absolute: bool) -> tuple[Tensor, Tensor]:
    with torch.autocast(difference.device.type, enabled=False):
        spectrum = torch.fft.rfft2(difference, norm="ortho").mul_(mask)
        size = spectrum.abs() if absolute else torch.view_as_real(spectrum).square().sum(-1)
        single = size[..., 0].sum()
        if difference.shape[-1] % 2 == 0:
            single = single + size[..., -1].sum()
        return (2 * size.sum() - single) / difference.numel(), spectrum


@_distance.register_fake
def _(difference, mask, absolute):
    shape = (*difference.shape[:-1], mask.shape[1])
    return difference.new_empty(()), difference.new_empty(shape, dtype=difference.dtype.to_complex())


@torch.library.custom_op("peft_kernels::spectral_distance_backward", mutates_args=())
def _distance_backward(gradient: Tensor, spectrum: Tensor, mask: Tensor, width: int, absolute: bool) -> Tensor:
    with torch.autocast(mask.device.type, enabled=False):
        inner = (torch.sgn(spectrum) if absolute else 2 * spectrum).mul_(mask)
        found = torch.fft.irfft2(inner, s=(spectrum.shape[-2], width), norm="ortho")
        return found.mul_(gradient / found.numel())


@_distance_backward.register_fake
def _(gradient, spectrum, mask, width, absolute):
    return mask.new_empty((*spectrum.shape[:-1], width))


def _context(ctx, inputs, output):
    difference, mask, ctx.absolute = inputs
    ctx.width = difference.shape[-1]
    ctx.save_for_backward(output[1], mask)
    ctx.set_materialize_grads(False)


def _gradients(ctx, gradient, _):
    if gradient is None:
        return None, None, None
    spectrum, mask = ctx.saved_tensors
    return _distance_backward(gradient, spectrum, mask, ctx.width, ctx.absolute), None, None


_distance.register_autograd(_gradients, setup_context=_context)
