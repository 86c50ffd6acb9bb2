"""Labelled pictures: the embedded digits, folders and zips of pictures, and timm's dataset names."""

from vision_peft.data.open import open_split
from vision_peft.data.pictures import DataError, Pictures

__all__ = ["DataError", "Pictures", "open_split"]
