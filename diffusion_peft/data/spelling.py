"""The spelling set: drawn words with their captions, to teach a pipeline to write; no word is in both parts."""

import numpy as np

from diffusion_peft.data.drawn import Drawn, Key
from diffusion_peft.data.words import Word, draw_word

TRAIN_SIZE, TEST_SIZE = 512, 64


class SpelledPictures:
    """`TRAIN_SIZE` words to train on, drawn anew in every epoch, and at the end `TEST_SIZE` fixed ones to test on.

    What is random in a picture is drawn from `(seed, epoch, index)` alone.
    """

    def __init__(self, size: int = 64, seed: int = 0):
        self.size = size
        self.seed = seed
        self.tested = [draw_word(np.random.default_rng([seed, index])) for index in range(TEST_SIZE)]
        self._texts = {word.text for word in self.tested}

    def __len__(self) -> int:
        return TRAIN_SIZE + TEST_SIZE

    def drawn(self, key: Key) -> Drawn:
        """The picture and its caption."""
        word = self.tested[key[1] - TRAIN_SIZE] if key[1] >= TRAIN_SIZE else self._trained(key)
        return Drawn(word.picture(self.size), word.caption, None)

    def _trained(self, key: Key) -> Word:
        rng = np.random.default_rng([self.seed, 1, *key])
        while (word := draw_word(rng)).text in self._texts:
            pass
        return word
