"""The one form in which every data source hands out its pictures, and the torch dataset that prepares them."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from peft_kernels.data_errors import DataError
from peft_kernels.draws import draw_seed

Key = tuple[int, int]


class Pictures(Protocol):
    """Labelled RGB pictures, by position."""

    @property
    def classes(self) -> Sequence[str]: ...

    @property
    def labels(self) -> np.ndarray:
        """Class index of every picture, int64 `[N]`."""
        ...

    def picture(self, index: int) -> Image.Image: ...


class Subset:
    """Some of the pictures of another source, in the order given."""

    def __init__(self, pictures: Pictures, indices: np.ndarray):
        self.pictures = pictures
        self.indices = indices
        self.classes = pictures.classes
        self.labels = pictures.labels[indices]

    def picture(self, index: int) -> Image.Image:
        return self.pictures.picture(int(self.indices[index]))


def few(pictures: Pictures, size: int, seed: int, field: str) -> Subset:
    """`size` pictures in the classes' shares, the same for the same seed; `field` is what a person set wrongly.

    Raises:
        DataError: not every class can be among those chosen and among the others.
    """
    count = len(pictures.labels)
    if size == count:
        return Subset(pictures, np.arange(count))
    classes = len(np.unique(pictures.labels))
    if not classes <= size <= count - classes:
        raise DataError(
            f"{field} {size} does not fit: choose {classes} (one of each class) to {count - classes} "
            f"of the {count} pictures, or null for all"
        )
    from sklearn.model_selection import train_test_split

    try:
        chosen, _ = train_test_split(np.arange(count), train_size=size, random_state=seed, stratify=pictures.labels)
    except ValueError as error:  # a class of a single picture
        raise DataError(f"{field} {size} does not fit: {error}") from None
    return Subset(pictures, np.sort(chosen))


def decoded(path: Path, read: Callable[[], bytes]) -> Image.Image:
    """The picture that `read` gives the bytes of, in RGB.

    Raises:
        DataError: it cannot be read or decoded; the message names `path`.
    """
    try:
        return Image.open(io.BytesIO(read())).convert("RGB")
    except (OSError, BadZipFile, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is not a readable picture: {error}") from None


class Decoded:
    """Pictures decoded once and kept as bytes, as many as `memory` bytes hold: 50,000 of 32×32 are 154 MB."""

    def __init__(self, pictures: Pictures, told: Callable[[int, int], None] | None = None, memory: int = 2**30):
        self.pictures = pictures
        self.classes = pictures.classes
        self.labels = pictures.labels
        self.arrays: list[np.ndarray] = []
        for index in range(len(self.labels)):
            array = np.asarray(pictures.picture(index))
            memory -= array.nbytes
            if memory < 0:
                break
            self.arrays.append(array)
            if told is not None:
                told(index + 1, len(self.labels))

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(self.arrays[index]) if index < len(self.arrays) else self.pictures.picture(index)


class Prepared(Dataset):
    """Pictures as the model takes them, asked for by `(epoch, index)`.

    What is random in a picture is drawn from `(seed, epoch, index)` alone: the same whichever process or worker
    prepares it, and the same again after a run was stopped and resumed.
    """

    def __init__(self, pictures: Pictures, transform: Callable[[Image.Image], Tensor], seed: int):
        self.pictures = pictures
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pictures.labels)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        """`image`: float32 `[3, H, W]`, normalised; `label`: int64 `[]`."""
        epoch, index = key
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(draw_seed(self.seed, epoch, index))
            image = self.transform(self.pictures.picture(index))
        return {"image": image, "label": torch.tensor(self.pictures.labels[index])}
