"""How far a picture is from another one: true errors, and those that the paper's tables show.

The authors subtract and square pictures of eight bits in eight bits, so that both wrap at 256: two unrelated pictures
have an error of about 107 and their PSNR cannot fall below 24 dB. `wrapped_squared_error` is that, for comparison with
the paper's tables alone.
"""

import torch
from torch import Tensor

IDENTICAL = 1e-10  # the error of two equal pictures, which so have 148.13 dB as in the paper


def squared_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error of each picture ``[N, ...]`` in levels of eight bits, float64 ``[N]``.

    Raises:
        ValueError: pictures of different shapes, or not of eight bits.
    """
    _check(found, wanted)
    return (found.double() - wanted.double()).square().flatten(1).mean(1)


def wrapped_squared_error(found: Tensor, wanted: Tensor) -> Tensor:
    """As `squared_error`, with difference and square modulo 256."""
    _check(found, wanted)
    difference = found - wanted
    return (difference * difference).double().flatten(1).mean(1)


def psnr(error: Tensor) -> Tensor:
    """Peak signal to noise in dB of mean squared errors ``[N]`` in levels of eight bits."""
    return 10 * torch.log10(255**2 / error.clamp_min(IDENTICAL))


def _check(found: Tensor, wanted: Tensor) -> None:
    if found.shape != wanted.shape or found.dtype != torch.uint8 or wanted.dtype != torch.uint8:
        raise ValueError(
            f"pictures of one shape and eight bits are compared; found {list(found.shape)} {found.dtype} and "
            f"{list(wanted.shape)} {wanted.dtype}"
        )
