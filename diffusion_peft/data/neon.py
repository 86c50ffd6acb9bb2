"""Signs of glowing glass tubes on a dark wall: how the pictures of the style set are lit."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from diffusion_peft.data.strokes import FINER, Place, strokes
from diffusion_peft.data.words import font

WALL = (14, 10, 30)
GLOWS = {
    "red": (255, 45, 60),
    "orange": (255, 130, 25),
    "yellow": (255, 225, 50),
    "green": (60, 245, 110),
    "blue": (50, 140, 255),
    "purple": (180, 70, 255),
    "pink": (255, 90, 190),
}
TUBE, CORE = 0.055, 0.022  # of the picture's side: width of a tube, and of the bright line in it
LIGHTS = ((0.09, 0.75), (0.025, 0.5), (0.0, 0.8))  # of a tube: reach, of the picture's side, and strength
CORE_STRENGTH, CORE_TINT = 0.75, 0.3
EXPOSURE = 1.6


@dataclass(frozen=True)
class Tubes:
    """Tubes of one colour: masks of the glass and of the bright line in it, `FINER` times as large as the picture."""

    glass: Image.Image
    core: Image.Image
    color: str


def bent(drawing: str, place: Place, size: int, color: str) -> Tubes:
    """Tubes along the strokes of a drawing, for a picture of `size` pixels."""
    side = FINER * size
    masks = []
    for width in (TUBE * side, CORE * side):
        mask = Image.new("L", (side, side))
        pen = ImageDraw.Draw(mask)
        for points in strokes(drawing):
            placed = [(float(x), float(y)) for x, y in place.put(points) * side]
            pen.line(placed, 255, round(width), joint="curve")
            for x, y in (placed[0], placed[-1]):
                pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), 255)
        masks.append(mask)
    return Tubes(masks[0], masks[1], color)


def lettered(text: str, size: int, color: str) -> Tubes:
    """Tubes in the shape of capital letters, at the places that letters of drawn words have."""
    side = FINER * size
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).text((side / 2, side / 2), text, 255, font(side), anchor="mm")
    return Tubes(mask, mask.filter(ImageFilter.MinFilter(2 * (side // 56) + 1)), color)


def lit(parts: list[Tubes], size: int) -> Image.Image:
    """The picture of the tubes as they shine in the dark, RGB."""
    light = np.zeros((size, size, 3))
    for tubes in parts:
        shade = np.array(GLOWS[tubes.color]) / 255
        glass, core = (mask.resize((size, size), Image.Resampling.BOX) for mask in (tubes.glass, tubes.core))
        for reach, strength in LIGHTS:
            light += strength * _amount(glass.filter(ImageFilter.GaussianBlur(reach * size))) * shade
        light += CORE_STRENGTH * _amount(core) * (1 - CORE_TINT + CORE_TINT * shade)
    wall = np.array(WALL) / 255
    exposed = wall + (1 - wall) * (1 - np.exp(-EXPOSURE * light))
    return Image.fromarray((255 * exposed).round().astype(np.uint8))


def _amount(mask: Image.Image) -> np.ndarray:
    return np.asarray(mask, np.float64)[..., None] / 255
