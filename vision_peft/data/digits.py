"""Scikit-learn's handwritten digits: 1,797 real scans of 8×8 pixels (UCI, Alpaydin & Kaynak 1998), without a download."""

import numpy as np
from PIL import Image

TRAINING_PICTURES = 1000


class Digits:
    """One part of the digits as RGB pictures, split by class shares: 1,000 to train and 797 to test.

    The split depends on `split_seed` alone, never on a run's seed, so that all runs are tested on the same pictures.
    """

    def __init__(self, split: str, split_seed: int = 0):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        bunch = load_digits()
        scans, labels = np.asarray(bunch["images"]), np.asarray(bunch["target"], dtype=np.int64)
        train, test = train_test_split(
            np.arange(len(labels)), train_size=TRAINING_PICTURES, random_state=split_seed, stratify=labels
        )
        chosen = np.sort(train if split == "train" else test)
        self.classes = [str(digit) for digit in range(10)]
        self.labels = labels[chosen]
        self.scans = (scans[chosen] * (255 / 16)).round().astype(np.uint8)

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(self.scans[index]).convert("RGB")
