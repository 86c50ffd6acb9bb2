"""Captioned emoji: variants that differ by skin tone alone form one family, so that none is drawn more than others.

Captions come from Unicode names; what a name says in the terms of the standard (`with skin tone type-4 with female
sign`) is said in words here (`woman, medium skin`).
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from diffusion_peft.data.captioned import CaptionedFolder
from diffusion_peft.data.palette import COLORS, USUAL, on_ground
from peft_kernels.data_errors import DataError

TONES = {"1-2": "light", "3": "medium light", "4": "medium", "5": "medium dark", "6": "dark"}
TONE_POINTS = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
HELD_OUT = 20  # one family of so many is for testing
Part = Literal["train", "test"]


def said_in_words(name: str) -> str:
    """A caption from a Unicode name: `runner with skin tone type-6 with female sign` → `runner, dark skin, woman`."""
    text = re.sub(r" with skin tone type-(\S+)", lambda found: f", {TONES.get(found[1], found[1])} skin", name.lower())
    text = text.replace(" with female sign", ", woman").replace(" with male sign", ", man")
    return text.replace("heavy black heart", "heart").replace("black rightwards arrow", "facing right")


class Emoji:
    """The families of one part, with their pictures decoded.

    Attributes:
        families: indices of each family's pictures.
        captions: of each picture.
        codepoints: of each picture, hexadecimal.
    """

    def __init__(self, root: Path, part: Part, size: int, told: Callable[[str, int, int], None] | None = None):
        folder = CaptionedFolder(root)
        self.captions = [said_in_words(row["text"]) for row in folder.rows]
        self.codepoints = [list(row.get("codepoints", [row["file_name"]])) for row in folder.rows]
        by_base: dict[tuple[str, ...], list[int]] = {}
        for index, points in enumerate(self.codepoints):
            by_base.setdefault(tuple(point for point in points if point not in TONE_POINTS), []).append(index)
        held = [number % HELD_OUT == HELD_OUT - 1 for number in range(len(by_base))]
        wanted = part == "test"
        self.families = [family for family, out in zip(by_base.values(), held, strict=True) if out == wanted]
        if not self.families:
            raise DataError(f"{root} holds too few pictures for a {part} part: {len(folder)}")
        self.size = size
        self.pictures: dict[int, Image.Image] = {}
        for done, family in enumerate(self.families):
            for index in family:
                picture = folder.picture(index)
                self.pictures[index] = picture if picture.size == (size, size) else picture.resize((size, size))
            if told is not None:
                told("decode the emoji", done + 1, len(self.families))

    def picture(self, index: int, ground: str, shift: tuple[int, int] = (0, 0)) -> Image.Image:
        """The emoji on a coloured ground, `shift` pixels right and down of its place, in RGB."""
        image = Image.new("RGB", (self.size, self.size), COLORS[ground])
        image.paste(self.pictures[index], shift, self.pictures[index])
        return image

    def draw(self, rng: np.random.Generator, family: int, shift: int = 0) -> tuple[Image.Image, str, int]:
        """A family's picture, its caption and index: on a random ground, half of the time the usual one."""
        index = self.families[family][rng.integers(len(self.families[family]))]
        ground = USUAL if rng.random() < 0.5 else list(COLORS)[rng.integers(len(COLORS))]
        right, down = (int(pixels) for pixels in rng.integers(-shift, shift + 1, 2))
        caption = on_ground(self.captions[index], ground, rng.random())
        return self.picture(index, ground, (right, down)), caption, index
