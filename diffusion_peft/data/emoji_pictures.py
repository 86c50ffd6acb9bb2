"""Emoji on coloured grounds as the embedded pipelines were trained on them, for adapting them further."""

from pathlib import Path

import numpy as np

from diffusion_peft.data.drawn import Drawn, Key
from diffusion_peft.data.emoji import Emoji


class EmojiPictures:
    """One picture of every family of emoji; the last ones are of those that no embedded pipeline has seen.

    What is random in a picture (its ground, which of the family it shows) is drawn from `(seed, epoch, index)` alone.
    """

    def __init__(self, root: Path, size: int = 64, seed: int = 0):
        self.known, self.unseen = Emoji(root, "train", size), Emoji(root, "test", size)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.known.families) + len(self.unseen.families)

    def drawn(self, key: Key) -> Drawn:
        """The picture and its caption."""
        index = key[1] - len(self.known.families)
        part, family = (self.known, key[1]) if index < 0 else (self.unseen, index)
        image, caption, number = part.draw(np.random.default_rng([self.seed, *key]), family)
        return Drawn(image, caption, part.codepoints[number])
