"""Labelled pictures: the embedded digits, folders and zips of pictures, and timm's dataset names."""

from peft_kernels.data_errors import DataError, UnknownNameError
from vision_peft.data.open import open_split
from vision_peft.data.pictures import Pictures

__all__ = ["DataError", "Pictures", "UnknownNameError", "open_split"]
