"""FDConv's operators as exporters know them: no operator of this project, complex numbers in one transform alone.

A low pass is two pairs of products with real matrices, the real part of ``R x C``.
"""

import numpy as np
import torch
from jaxtyping import Float, Int16
from torch import Tensor

from .spectrum import folded


def plain_kernels(
    spectrum: Float[Tensor, "copies P1 Q 2"],
    gains: Float[Tensor, "B copies n"],
    groups: Int16[Tensor, "P1 Q"],
    size: tuple[int, int, int],
) -> Float[Tensor, "B Co Ci k1 k2"]:
    """Every sample's kernel before any factors, see `fdconv.sample_kernels`."""
    channels, k1, k2 = size
    chosen = gains.index_select(2, groups.flatten().int()).unflatten(2, groups.shape)
    modulated = symmetrised((spectrum * chosen[..., None]).sum(1), channels * k2)
    matrices = torch.fft.irfft2(torch.view_as_complex(modulated), s=(len(groups), channels * k2))
    return folded(matrices, k1, k2)


def symmetrised(spectrum: Float[Tensor, "B P1 Q 2"], columns: int) -> Float[Tensor, "B P1 Q 2"]:
    """What `hermitian_` makes of complex half spectra, of their real and imaginary parts."""
    signs = spectrum.new_tensor((1.0, -1.0))
    mirrored = torch.cat((spectrum[:, :1], spectrum[:, 1:].flip(1)), 1) * signs
    even = (spectrum + mirrored) / 2
    last = even[:, :, -1:] if columns % 2 == 0 else spectrum[:, :, -1:]
    return torch.cat((even[:, :, :1], spectrum[:, :, 1:-1], last), 2)


def band_modulation(
    x: Float[Tensor, "B C H W"], maps: Float[Tensor, "B maps gs H W"], rows: np.ndarray, columns: np.ndarray
) -> Float[Tensor, "B C H W"]:
    """See `fdconv.band_modulation`.

    Args:
        x: the feature map.
        maps: A.
        rows: which frequencies of the rows each low pass keeps, ``[bands, H]``.
        columns: of the columns, ``[bands, Q]``.
    """
    whole = maps.repeat_interleave(x.shape[1] // maps.shape[2], 2)
    y, upper = torch.zeros_like(x), x
    for index, kept in enumerate(zip(rows, columns, strict=True)):
        parts = (part(each) for each in low_pass(*kept, x.shape[-2], x.shape[-1]) for part in (np.real, np.imag))
        even, odd, real, imaginary = (torch.from_numpy(part.copy()).to(x.device, x.dtype) for part in parts)
        lower = even @ x @ real - odd @ x @ imaginary
        y, upper = y + whole[:, index] * (upper - lower), lower
    return y + (whole[:, len(rows)] * upper if maps.shape[1] > len(rows) else upper)


def low_pass(rows: np.ndarray, columns: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """R ``[H, H]`` and C ``[W, W]`` with ``Re(R x C)`` the map's part at the kept rows and columns of half spectra."""
    down = np.fft.ifft(rows[:, None] * np.fft.fft(np.eye(height), axis=0), axis=0)
    frequency = np.arange(width // 2 + 1)
    stands_for = columns * np.where((2 * frequency) % width == 0, 1, 2) / width
    waves = np.exp(-2j * np.pi * np.outer(np.arange(width), frequency) / width)
    return down, waves * stands_for @ waves.conj().T
