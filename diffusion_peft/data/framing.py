"""Pictures of any size as a model takes them: squares, cropped and flipped, with captions by number."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from diffusion_peft.data.drawn import Drawn, Key, to_tensor


class Pictures(Protocol):
    """Captioned pictures; what is random in one depends on its key `(epoch, index)` alone."""

    def __len__(self) -> int: ...

    def drawn(self, key: Key) -> Drawn: ...


@dataclass(frozen=True)
class Some:
    """The pictures of these indices."""

    pictures: Pictures
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def drawn(self, key: Key) -> Drawn:
        return self.pictures.drawn((key[0], self.indices[key[1]]))


@dataclass(frozen=True)
class Framing:
    """How a picture becomes a square of `size` pixels: its shorter side is made that long, and the rest cropped."""

    size: int
    crop: Literal["center", "random"] = "center"
    flip: float = 0.0

    def framed(self, image: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, list[int]]:
        """The square, and where it lies: height and width as it came, top and left, height and width of the square."""
        scale = self.size / min(image.size)
        sides = [max(self.size, round(side * scale)) for side in image.size]
        resized = image if tuple(sides) == image.size else image.resize((sides[0], sides[1]), Image.Resampling.LANCZOS)
        room = [side - self.size for side in sides]
        left, top = (int(rng.integers(0, more + 1)) if self.crop == "random" else more // 2 for more in room)
        square = resized.crop((left, top, left + self.size, top + self.size))
        if rng.random() < self.flip:
            square = ImageOps.mirror(square)
        return square, [image.height, image.width, top, left, self.size, self.size]


class Framed(Dataset):
    """The samples of a run: `image`, its `framing` `[6]`, the number of its `caption` in `words`, and its `weight`.

    With pictures of a `prior`, every second sample is one of these: as many as of the other kind, whatever the numbers.
    """

    def __init__(
        self,
        pictures: Pictures,
        framing: Framing,
        words: list[str],
        seed: int,
        prior: Pictures | None = None,
        prior_weight: float = 1.0,
    ):
        self.pictures, self.framing, self.words, self.seed = pictures, framing, words, seed
        self.prior, self.prior_weight = prior, prior_weight

    def __len__(self) -> int:
        return len(self.pictures) if self.prior is None else 2 * max(len(self.pictures), len(self.prior))

    def drawn(self, key: Key) -> tuple[Drawn, float]:
        """The picture of a sample, and what its error weighs."""
        epoch, index = key
        if self.prior is None:
            return self.pictures.drawn(key), 1.0
        if index % 2:
            return self.prior.drawn((epoch, index // 2 % len(self.prior))), self.prior_weight
        return self.pictures.drawn((epoch, index // 2 % len(self.pictures))), 1.0

    def framed(self, key: Key) -> tuple[Image.Image, list[int], Drawn, float]:
        """The square of a sample, where it lies, the picture it is of, and what its error weighs."""
        drawn, weight = self.drawn(key)
        square, place = self.framing.framed(drawn.image, np.random.default_rng([self.seed, *key, 1]))
        return square, place, drawn, weight

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        square, place, drawn, weight = self.framed(key)
        if drawn.caption not in self.words:
            self.words.append(drawn.caption)
        return {
            "image": to_tensor(square),
            "framing": torch.tensor(place, dtype=torch.float32),
            "caption": torch.tensor(self.words.index(drawn.caption)),
            "weight": torch.tensor(weight),
        }
