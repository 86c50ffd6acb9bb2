"""Pictures of words: one to four capital letters in a colour on a coloured ground, drawn when they are asked for.

The font is DejaVu Sans Mono Bold, which comes with matplotlib: letters of one width, so that four fill the picture.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import ascii_uppercase

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffusion_peft.data.palette import COLORS, on_ground, readable_on

LETTERS = ascii_uppercase
LONGEST = 4
FONT_SHARE = 0.375  # of the picture's height: four letters are 0.9 of its width


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """The font whose letters are drawn, at a height of `size / 64` of 24 pixels."""
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSansMono-Bold.ttf")
    return ImageFont.truetype(str(path), round(FONT_SHARE * size))


@dataclass(frozen=True)
class Word:
    """A word as it is drawn.

    Attributes:
        text: one to four capital letters.
        ink: colour of the letters, a name of the palette.
        ground: colour behind them.
        shift: pixels right and down of the middle.
        coin: in [0, 1); below a half the caption leaves out the usual ground.
    """

    text: str
    ink: str
    ground: str
    shift: tuple[int, int] = (0, 0)
    coin: float = 1.0

    @property
    def caption(self) -> str:
        return on_ground(f'the word "{self.text}" in {self.ink}', self.ground, self.coin)

    def picture(self, size: int) -> Image.Image:
        """The word in the middle of a square of `size` pixels, in RGB."""
        image = Image.new("RGB", (size, size), COLORS[self.ground])
        middle = (size / 2 + self.shift[0], size / 2 + self.shift[1])
        ImageDraw.Draw(image).text(middle, self.text, COLORS[self.ink], font(size), anchor="mm")
        return image


def draw_word(rng: np.random.Generator, shift: int = 0) -> Word:
    """A random word: every length, letter and readable pair of colours as likely as the others."""
    length = int(rng.integers(1, LONGEST + 1))
    text = "".join(LETTERS[index] for index in rng.integers(0, len(LETTERS), length))
    grounds = list(COLORS)
    ground = grounds[rng.integers(len(grounds))]
    inks = readable_on(ground)
    right, down = (int(pixels) for pixels in rng.integers(-shift, shift + 1, 2))
    return Word(text, inks[rng.integers(len(inks))], ground, (right, down), float(rng.random()))
