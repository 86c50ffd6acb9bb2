"""Pictures under the names of timm's dataset factory: `torch/cifar10`, `hfds/...`, `hfids/...`, `tfds/...`, `wds/...`."""

from difflib import get_close_matches
from pathlib import Path

import numpy as np
from PIL import Image

from vision_peft.data.pictures import DataError


def timm_schemes() -> tuple[str, ...]:
    """What may stand before the slash and gives pictures by position."""
    return ("torch", "hfds")


class TimmPictures:
    """One part of a dataset that timm opens."""

    def __init__(self, name: str, root: Path | None, split: str):
        from timm.data import create_dataset
        from timm.data.dataset_factory import _TORCH_BASIC_DS

        scheme, _, rest = name.partition("/")
        known = [f"torch/{key}" for key in [*_TORCH_BASIC_DS, "inaturalist", "places365", "qmnist", "imagenet"]]
        if scheme == "torch" and name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.0)
            raise DataError(f"unknown data {name!r}: the nearest is {near[0]!r}")
        try:
            self.dataset = create_dataset(name, root=None if root is None else str(root), split=split, download=False)
        except Exception as error:  # what torchvision and datasets raise has no common type
            reason = str(error).strip().partition("\n")[0]
            raise DataError(f"{name} could not be opened at {root}: {reason}") from error
        self.labels = np.array(_labels(self.dataset), dtype=np.int64)
        names = getattr(self.dataset, "classes", None)
        self.classes = [str(label) for label in (names or range(int(self.labels.max()) + 1))]

    def picture(self, index: int) -> Image.Image:
        return self.dataset[index][0].convert("RGB")  # type: ignore[union-attr]


def _labels(dataset: object) -> list[int]:
    for attribute in ("targets", "labels", "_labels"):
        found = getattr(dataset, attribute, None)
        if found is not None:
            return list(found)
    return [int(dataset[index][1]) for index in range(len(dataset))]  # type: ignore[arg-type,index]
