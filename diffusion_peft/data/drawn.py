"""Emoji and words as one torch dataset, asked for by `(epoch, index)` like every dataset of a run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from diffusion_peft.data.emoji import Emoji
from diffusion_peft.data.palette import COLORS, readable_on
from diffusion_peft.data.words import Word, draw_word

Key = tuple[int, int]


@dataclass(frozen=True)
class Drawn:
    """One picture as it was drawn: RGB, its caption, and the emoji's codepoints (hexadecimal), or None for a word."""

    image: Image.Image
    caption: str
    codepoints: Sequence[str] | None


class DrawnPictures(Dataset):
    """The first samples are families of emoji, the last `words` are words.

    What is random in a sample is drawn from `(seed, epoch, index)` alone: the same whichever process or worker
    prepares it, and the same again after a run was stopped and resumed.
    """

    def __init__(self, emoji: Emoji, words: int, shift: int, seed: int, take: Callable[[Drawn], dict[str, Tensor]]):
        self.emoji = emoji
        self.words = words
        self.shift = shift
        self.seed = seed
        self.take = take

    def __len__(self) -> int:
        return len(self.emoji.families) + self.words

    def drawn(self, key: Key) -> Drawn:
        """The picture and what is known of it."""
        rng = np.random.default_rng([self.seed, *key])
        if key[1] < len(self.emoji.families):
            image, caption, index = self.emoji.draw(rng, key[1], self.shift)
            return Drawn(image, caption, self.emoji.codepoints[index])
        word = draw_word(rng, self.shift)
        return Drawn(word.picture(self.emoji.size), word.caption, None)

    def all_captions(self) -> list[str]:
        """Every caption of an emoji, whichever part it is in, and the words' captions without a word."""
        plain = [f"{caption} on {ground}" for caption, ground in zip(self.emoji.captions, cycle(COLORS))]
        return plain + [Word("", ink, ground).caption for ground in COLORS for ink in readable_on(ground)]

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        drawn = self.drawn(key)
        return {"image": to_tensor(drawn.image), **self.take(drawn)}


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as float32 `[3, H, W]` in [-1, 1]."""
    array = np.asarray(image, dtype=np.float32)
    return torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1).contiguous()
