"""Frequency dynamic convolution (FDConv): kernels rebuilt per sample from a spectrum, and bands of a feature map."""

from . import reference
from .bands import MASKS, band_masks, band_modulation
from .kernels import sample_kernels
from .spectrum import ORDERS, frequency_groups, spectrum_of, weight_of

__all__ = [
    "MASKS",
    "ORDERS",
    "band_masks",
    "band_modulation",
    "frequency_groups",
    "reference",
    "sample_kernels",
    "spectrum_of",
    "weight_of",
]
