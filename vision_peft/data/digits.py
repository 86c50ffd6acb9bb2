"""Scikit-learn's handwritten digits: 1,797 real scans of 8×8 pixels (UCI; Alpaydin & Kaynak, 1998), embedded."""

from typing import Any

import numpy as np
from PIL import Image

from peft_kernels.data_errors import unknown

TRAINING_PICTURES = 1000
PARTS = ("train", "test")


class Digits:
    """One part of the digits as RGB pictures, split by class shares: 1,000 to train and 797 to test.

    The split is the same for every run, so that all are tested on the same pictures.

    Raises:
        UnknownNameError: the part is neither `train` nor `test`.
    """

    def __init__(self, split: str):
        if split not in PARTS:
            raise unknown("part of the digits", split, PARTS)
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        bunch: Any = load_digits()
        scans, labels = np.asarray(bunch["images"]), np.asarray(bunch["target"], dtype=np.int64)
        train, test = train_test_split(
            np.arange(len(labels)), train_size=TRAINING_PICTURES, random_state=0, stratify=labels
        )
        chosen = np.sort(train if split == "train" else test)
        self.classes = [str(digit) for digit in range(10)]
        self.labels = labels[chosen]
        self.scans = (scans[chosen] * (255 / 16)).round().astype(np.uint8)

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(self.scans[index]).convert("RGB")
