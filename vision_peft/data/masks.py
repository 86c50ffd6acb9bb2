"""Pictures whose every pixel has a class: drawn, laid together from photographs, or read from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as T

from peft_kernels.data_errors import DataError
from peft_kernels.draws import draw_seed
from vision_peft.data.folder import ENDINGS
from vision_peft.data.pictures import Pictures, decoded
from vision_peft.data.scenes import KINDS, scene

IGNORED = 255
"""The class of pixels that count for nothing."""

MOST = 4
"""Photographs in a collage."""


class Masked(Protocol):
    """Pictures with the classes of their pixels."""

    classes: list[str]

    def __len__(self) -> int: ...

    def pair(self, index: int, seed: int) -> tuple[Image.Image, np.ndarray]:
        """An RGB picture and its classes ``[height, width]``; what is made anew is made from the seed."""
        ...


class Scenes:
    """Discs, squares and triangles, drawn (`scene`).

    Args:
        count: of pictures.
        side: of each.
    """

    def __init__(self, count: int, side: int) -> None:
        self.count, self.side, self.classes = count, side, ["ground", *KINDS]

    def __len__(self) -> int:
        return self.count

    def pair(self, index: int, seed: int) -> tuple[Image.Image, np.ndarray]:
        drawn = scene(seed, self.side)
        return T.to_pil_image(drawn.picture), drawn.classes.numpy()


class Collages:
    """Photographs laid over each other: one over all of the picture, up to three smaller ones, square or round, on it.

    A pixel's class is that of the photograph it shows, so that large and small things are to be told apart.

    Args:
        pictures: the photographs.
        count: of collages.
        side: of each.

    Raises:
        DataError: there are fewer photographs than a collage may show.
    """

    def __init__(self, pictures: Pictures, count: int, side: int) -> None:
        if len(pictures.labels) < MOST:
            raise DataError(f"collages are made of up to {MOST} photographs; found {len(pictures.labels)}")
        self.pictures, self.count, self.side, self.classes = pictures, count, side, list(pictures.classes)

    def __len__(self) -> int:
        return self.count

    def pair(self, index: int, seed: int) -> tuple[Image.Image, np.ndarray]:
        rng, side = np.random.default_rng(seed), self.side
        chosen = rng.choice(len(self.pictures.labels), rng.integers(2, MOST + 1), replace=False)
        whole = self._photograph(chosen[0], side)
        classes = Image.new("L", whole.size, int(self.pictures.labels[chosen[0]]))
        for one in chosen[1:]:
            size = int(rng.integers(side // 4, side // 2 + 1))
            left, top = (int(start) for start in rng.integers(0, side - size + 1, 2))
            shape = Image.new("L", (size, size), 0)
            pen = ImageDraw.Draw(shape)
            (pen.ellipse if rng.random() < 0.5 else pen.rectangle)((0, 0, size - 1, size - 1), fill=255)
            whole.paste(self._photograph(one, size), (left, top), shape)
            classes.paste(int(self.pictures.labels[one]), (left, top, left + size, top + size), shape)
        return whole, np.asarray(classes, dtype=np.int64)

    def _photograph(self, index: int, size: int) -> Image.Image:
        return self.pictures.picture(int(index)).resize((size, size), Image.Resampling.BICUBIC)


class MaskFolder:
    """``<split>/images/<name>.jpg`` with ``<split>/masks/<name>.png``, whose values are lines of ``classes.txt``.

    Args:
        root: holds the parts and ``classes.txt``, a class a line; 255 in a mask counts for nothing.
        split: the part.

    Raises:
        DataError: files are missing, or ``classes.txt`` is no list of classes.
    """

    def __init__(self, root: Path, split: str) -> None:
        names, images = root / "classes.txt", root / split / "images"
        if not names.is_file() or not images.is_dir():
            missing = images if names.is_file() else names
            raise DataError(f"{missing} is missing: expected classes.txt, {split}/images and {split}/masks")
        self.classes = names.read_text(encoding="utf-8").rstrip().splitlines()
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise DataError(f"{names}: expected a class a line, each once; found {self.classes}")
        self.images = sorted(path for path in images.iterdir() if path.suffix.lower() in ENDINGS)
        self.masks = [root / split / "masks" / f"{path.stem}.png" for path in self.images]
        lacking = [path for path in self.masks if not path.is_file()]
        if lacking or not self.images:
            raise DataError(f"{lacking[0]} is missing" if lacking else f"{images} holds no pictures")

    def __len__(self) -> int:
        return len(self.images)

    def pair(self, index: int, seed: int) -> tuple[Image.Image, np.ndarray]:
        path, picture = self.masks[index], decoded(self.images[index], self.images[index].read_bytes)
        try:
            with Image.open(path) as mask:
                classes = np.asarray(mask, dtype=np.int64)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{path} is not a readable mask: {error}") from None
        strange = np.setdiff1d(classes, [*range(len(self.classes)), IGNORED])
        if classes.ndim != 2 or len(strange):
            found = f"the value {strange[0]}" if len(strange) else f"the shape {list(classes.shape)}"
            raise DataError(f"{path}: expected one channel of 0 to {len(self.classes) - 1} or {IGNORED}; found {found}")
        if picture.size != classes.shape[::-1]:
            sizes = [f"{width}×{height}" for width, height in (classes.shape[::-1], picture.size)]
            raise DataError(f"{path} is {sizes[0]} pixels and its picture {self.images[index].name} {sizes[1]}")
        return picture, classes


class PreparedMasks(Dataset):
    """Pictures and their classes as a model takes them, asked for by `(epoch, index)`.

    Args:
        source: of the pictures.
        side: pictures and classes are brought to this height and width.
        size: the model takes pictures of this height and width.
        normal: mean and deviation of the channels.
        seed: of what is made anew.
        varied: whether each epoch has its own drawn pictures, and half of all are mirrored.
    """

    def __init__(
        self,
        source: Masked,
        side: int,
        size: tuple[int, int],
        normal: tuple[list[float], list[float]],
        seed: int,
        varied: bool,
    ) -> None:
        self.source, self.side, self.size, self.normal = source, side, size, normal
        self.seed, self.varied = seed, varied

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        """`image`: float32 `[3, *size]`, normalised; `classes`: int64 `[side, side]`."""
        epoch, index = key
        seed = draw_seed(self.seed, epoch if self.varied else 0, index)
        picture, drawn = self.source.pair(index, seed)
        classes = torch.from_numpy(drawn.copy())
        if classes.shape != (self.side, self.side):
            picture = picture.resize((self.side, self.side), Image.Resampling.BICUBIC)
            classes = T.resize(classes[None], [self.side, self.side], T.InterpolationMode.NEAREST_EXACT)[0]
        image = T.to_dtype(T.pil_to_tensor(picture), torch.float32, scale=True)
        if self.size != (self.side, self.side):
            image = T.resize(image, list(self.size), T.InterpolationMode.BICUBIC, antialias=True)
        image = T.normalize(image, *self.normal)
        if self.varied and seed % 2:
            image, classes = image.flip(-1), classes.flip(-1)
        return {"image": image, "classes": classes}
