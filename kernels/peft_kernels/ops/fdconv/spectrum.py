"""The spectrum of a convolution's weight, and its disjoint groups of frequencies (Fourier disjoint weight).

A weight ``W [Co, Ci, k1, k2]`` is unfolded to the matrix ``M[co k1 + u, ci k2 + v] = W[co, ci, u, v]`` of shape
``[P1, P2]``; its spectrum is ``F = rfft2(M)`` of shape ``[P1, Q]``, ``Q = P2 // 2 + 1``, here as real and imaginary
parts in a last axis. All ``N = P1 Q`` entries, sorted by their distance from frequency 0, are cut into ``n`` groups of
equal size (± 1): the entry of rank ``r`` belongs to group ``⌊r n / N⌋``.
"""

from functools import lru_cache

import torch
from jaxtyping import Float, Int16
from torch import Tensor

from ..spectra import at_least_float32

ORDERS = ("exact", "official")


def unfolded(weight: Float[Tensor, "Co Ci k1 k2"]) -> Float[Tensor, "P1 P2"]:
    """M."""
    out, channels, k1, k2 = weight.shape
    return weight.permute(0, 2, 1, 3).reshape(out * k1, channels * k2)


def folded(matrix: Float[Tensor, "*batch P1 P2"], k1: int, k2: int) -> Float[Tensor, "*batch Co Ci k1 k2"]:
    """The weight that unfolds to M, a view."""
    *batch, rows, columns = matrix.shape
    return matrix.view(*batch, rows // k1, k1, columns // k2, k2).transpose(-3, -2)


def spectrum_of(weight: Float[Tensor, "Co Ci k1 k2"]) -> Float[Tensor, "P1 Q 2"]:
    """F, in float32 at least; differentiable."""
    return torch.view_as_real(torch.fft.rfft2(unfolded(at_least_float32(weight))))


def weight_of(spectrum: Float[Tensor, "P1 Q 2"], channels: int, k1: int, k2: int) -> Float[Tensor, "Co Ci k1 k2"]:
    """The weight with this spectrum; differentiable."""
    return folded(inverse(torch.view_as_complex(spectrum), channels * k2), k1, k2)


def inverse(spectrum: Tensor, columns: int) -> Float[Tensor, "*batch P1 P2"]:
    """``irfft2`` of complex half spectra, symmetrised before; differentiable."""
    return torch.fft.irfft2(hermitian_(spectrum.clone(), columns), s=(spectrum.shape[-2], columns))


def hermitian_(spectrum: Tensor, columns: int) -> Tensor:
    """Complex half spectra whose first (and last, for even P2) column is made Hermitian, in place.

    Of these columns a real matrix knows the Hermitian part only; what the transforms make of the rest differs between
    libraries.
    """
    for end in {0, columns // 2} if columns % 2 == 0 else {0}:
        column = spectrum[..., end]
        spectrum[..., end] = (column + column.flip(-1).roll(1, -1).conj_physical()) / 2
    return spectrum


@lru_cache(maxsize=16)
def frequency_groups(rows: int, columns: int, groups: int, order: str = "exact") -> Int16[Tensor, "P1 Q"]:
    """The group of every entry of the half spectrum of a ``rows × columns`` matrix; group 0 has the lowest frequencies.

    It lies on the CPU whatever the default device is; do not write into it.

    Args:
        rows: P1.
        columns: P2.
        groups: n.
        order: ``exact`` (integer distances, ties by place: the same anywhere) or ``official`` (the authors' unstable
            sort of float32 distances, which has to be saved).

    Raises:
        ValueError: an unknown order, or more groups than entries.
    """
    if order not in ORDERS:
        raise ValueError(f"the order of frequencies is one of {', '.join(ORDERS)}; found {order!r}")
    width = columns // 2 + 1
    size = rows * width
    if not 1 <= groups <= size:
        raise ValueError(f"a spectrum of {rows} x {width} entries has from 1 to {size} groups; found {groups}")
    if order == "exact":
        index = torch.arange(rows, device="cpu")
        signed = torch.where(index < (rows + 1) // 2, index, index - rows)
        key = (signed * columns).square()[:, None] + (torch.arange(width, device="cpu") * rows).square()
        ranked = key.flatten().argsort(stable=True)
    else:
        f_h, f_w = torch.fft.fftfreq(rows, device="cpu"), torch.fft.rfftfreq(columns, device="cpu")
        distance = (f_h.square()[:, None] + f_w.square()).sqrt()
        ranked = distance.flatten().argsort()
    found = torch.empty(size, dtype=torch.int16, device="cpu")
    found[ranked] = (torch.arange(size, device="cpu") * groups // size).to(torch.int16)
    return found.view(rows, width)
