"""The style set: neon signs with captions, drawn when they are asked for; the embedded model has never seen any.

Captions are `neon style, umbrella in green`, after SaRA's protocol (`NAME style, ` before what a picture shows), and
`neon style, the word "CAT" in red`.
"""

import numpy as np

from diffusion_peft.data.drawn import Drawn, Key
from diffusion_peft.data.neon import GLOWS, bent, lettered, lit
from diffusion_peft.data.signs import SIGNS
from diffusion_peft.data.strokes import Place
from diffusion_peft.data.words import draw_word

STYLE = "neon style, "
HELD_OUT = 4  # one subject of so many is for testing
TRAIN_WORDS, TEST_WORDS = 9, 2  # each time that the subjects of a part are drawn
TEST_TIMES = 4
TURN, SCALE, SHIFT = 10.0, (0.75, 0.9), 0.04
TRAIN = [name for number, name in enumerate(SIGNS) if number % HELD_OUT != HELD_OUT - 1]
TEST = [name for number, name in enumerate(SIGNS) if number % HELD_OUT == HELD_OUT - 1]
# What each picture of the set shows; None is a word, which is drawn by chance.
SHOWN = [*TRAIN, *[None] * TRAIN_WORDS, *[*TEST, *[None] * TEST_WORDS] * TEST_TIMES]
TEST_SIZE = (len(TEST) + TEST_WORDS) * TEST_TIMES


class StylePictures:
    """Forty pictures to train on, and at the end `TEST_SIZE` to test on, which show other subjects and other words.

    What is random in a picture is drawn from `(seed, epoch, index)` alone: colours, place and letters. Epoch 0 is the
    set; every other epoch draws it anew.
    """

    def __init__(self, size: int = 64, seed: int = 0):
        self.size = size
        self.seed = seed

    def __len__(self) -> int:
        return len(SHOWN)

    def drawn(self, key: Key) -> Drawn:
        """The picture and its caption."""
        rng = np.random.default_rng([self.seed, *key])
        color, other = (str(name) for name in rng.permutation(list(GLOWS))[:2])
        name = SHOWN[key[1]]
        if name is None:
            text = draw_word(rng).text
            image = lit([lettered(text, self.size, color)], self.size)
            return Drawn(image, f'{STYLE}the word "{text}" in {color}', None)
        place = Place(
            rng.uniform(-TURN, TURN),
            rng.uniform(*SCALE),
            (rng.uniform(-SHIFT, SHIFT), rng.uniform(-SHIFT, SHIFT)),
            bool(rng.random() < 0.5),
        )
        main, rest = SIGNS[name]
        tubes = [bent(main, place, self.size, color), bent(rest, place, self.size, other)]
        return Drawn(lit(tubes, self.size), f"{STYLE}{name} in {color}", None)
