"""Pictures under the names of timm's dataset factory that can be read by position: `torch/cifar10`, `hfds/...`."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from peft_kernels.data_errors import DataError, unknown

# What timm's factory knows after `torch/` beside its own table.
TORCH_OTHERS = ("inaturalist", "places365", "qmnist", "imagenet", "image_folder")


def timm_schemes() -> tuple[str, ...]:
    """What may stand before the slash."""
    return ("torch", "hfds")


class TimmPictures:
    """One part of a dataset that timm opens; nothing is downloaded for `torch/...`, it must lie at `root`.

    Raises:
        UnknownNameError: torchvision has no such dataset; the nearest is told.
        DataError: timm cannot open it there; the message gives its reason.
    """

    def __init__(self, name: str, root: Path | None, split: str):
        from timm.data import create_dataset
        from timm.data.dataset_factory import _TORCH_BASIC_DS

        known = [f"torch/{key}" for key in [*_TORCH_BASIC_DS, *TORCH_OTHERS]]
        if name.startswith("torch/") and name not in known:
            raise unknown("data", name, known)
        if name.startswith("torch/") and root is None:
            raise DataError(f"{name} is read from a folder, but none is given: add --data.root FOLDER")
        try:
            self.dataset: Any = create_dataset(name, root=None if root is None else str(root), split=split)
        except Exception as error:  # what torchvision and datasets raise has no common type
            reason = " ".join(str(error).split())
            raise DataError(f"{name} cannot be opened at {root}: {reason}") from error
        self.labels = np.array(_labels(self.dataset), dtype=np.int64)
        names = getattr(self.dataset, "classes", None)
        self.classes = [str(label) for label in (names or range(int(self.labels.max()) + 1))]

    def picture(self, index: int) -> Image.Image:
        return self.dataset[index][0].convert("RGB")


def _labels(dataset: Any) -> list[int]:
    for attribute in ("targets", "labels", "_labels"):
        found = getattr(dataset, attribute, None)
        if found is not None:
            return list(found)
    return [int(dataset[index][1]) for index in range(len(dataset))]
