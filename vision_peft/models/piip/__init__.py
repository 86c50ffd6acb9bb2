"""PIIP: parameter-inverted image pyramids of timm models (Zhu et al., NeurIPS 2024, arXiv 2406.04330)."""

from .counting import macs
from .interaction import InteractionSpec
from .pyramid import Piip
from .registered import pyramid

__all__ = ["InteractionSpec", "Piip", "macs", "pyramid"]
