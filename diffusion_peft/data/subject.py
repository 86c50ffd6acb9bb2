"""The subject set: one particular fish in a handful of views, to teach a model that one (DreamBooth, CVPR 2023).

Captions are `sks fish on blue`: `sks` names the subject, `fish` its class, which the embedded model knows.
"""

import numpy as np
from PIL import Image, ImageDraw

from diffusion_peft.data.drawn import Drawn, Key
from diffusion_peft.data.palette import COLORS
from diffusion_peft.data.strokes import FINER, Place, strokes

NAME, CLASS = "sks", "fish"
GROUNDS = ("white", "yellow", "green", "blue", "pink", "grey")
TEST_SIZE = len(GROUNDS)
TURN, SCALE, SHIFT = 25.0, (0.7, 0.9), 0.04
OUTLINE = 0.025  # of the picture's side
INK = (40, 20, 60)
# Areas from back to front, each closed and outlined.
AREAS = (
    ((255, 140, 40), "curve 74 54 96 32 90 54 96 78 74 58"),
    ((255, 140, 40), "curve 38 40 50 18 66 22 64 42"),
    ((130, 60, 190), "loop 8 56 22 40 44 34 66 42 80 56 66 70 44 78 22 72"),
    ((255, 220, 60), "line 40 36 50 36 46 48 54 56 48 66 54 76 44 77 38 66 44 56 36 48"),
    ((255, 220, 60), "line 60 40 67 43 63 52 69 58 64 64 67 69 60 73 56 64 61 57 56 50"),
    ((255, 140, 40), "curve 40 60 52 58 50 72 40 66"),
    ((255, 255, 255), "arc 24 52 7 7 0 360"),
    ((40, 20, 60), "arc 22 52 3 3 0 360"),
    ((215, 35, 50), "line 14 40 40 31 38 26 33 27 29 10 14 15 18 32 12 35"),
)


class SubjectPictures:
    """Views of the fish, turned, mirrored, near and far, on grounds: six to train on, and at the end six to test on.

    What is random in a view is drawn from `(seed, epoch, index)` alone; epoch 0 is the set.
    """

    def __init__(self, size: int = 64, seed: int = 0):
        self.size = size
        self.seed = seed

    def __len__(self) -> int:
        return 2 * len(GROUNDS)

    def drawn(self, key: Key) -> Drawn:
        """The view and its caption."""
        rng = np.random.default_rng([self.seed, *key])
        place = Place(
            rng.uniform(-TURN, TURN),
            rng.uniform(*SCALE),
            (rng.uniform(-SHIFT, SHIFT), rng.uniform(-SHIFT, SHIFT)),
            key[1] % 2 == 1,
        )
        ground = GROUNDS[key[1] % len(GROUNDS)]
        return Drawn(draw_fish(place, ground, self.size), f"{NAME} {CLASS} on {ground}", None)


def draw_fish(place: Place, ground: str, size: int) -> Image.Image:
    """The fish on a coloured ground, RGB."""
    side = FINER * size
    image = Image.new("RGB", (side, side), COLORS[ground])
    pen = ImageDraw.Draw(image)
    for color, drawing in AREAS:
        for points in strokes(drawing):
            placed = [(float(x), float(y)) for x, y in place.put(points) * side]
            pen.polygon(placed, color)
            pen.line([*placed, placed[0], placed[1]], INK, round(OUTLINE * side), joint="curve")
    return image.resize((size, size), Image.Resampling.BOX)
