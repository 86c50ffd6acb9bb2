"""What somebody drew, as a condition image: lines become edges, areas become patches of colour."""

from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_peft.data.conditions import Condition
from peft_runs.errors import UsageError
from peft_runs.steering import MODES, opened

INKED = 24  # of 255: how bright a pixel of the small picture has to be to count as drawn


def prepared(file: Path, condition: Condition, size: int, channels: int) -> Image.Image:
    """A drawing, on black for `edges` and `depth`, as a square condition image.

    Raises:
        UsageError: nothing was drawn.
        RunError: the file is no picture.
    """
    picture = opened(file).convert("RGBA")
    drawing = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture).convert("RGB")
    small = drawing.resize((size, size), Image.Resampling.BOX)
    if not np.asarray(small).any():
        raise UsageError(f"nothing is drawn yet: draw the {condition.name} of the picture first")
    if condition.name == "edges":
        small = Image.fromarray(np.where(np.asarray(small.convert("L")) >= INKED, 255, 0).astype(np.uint8))
    elif condition.name == "colors":
        small = condition(small)
    return small.convert(MODES.get(channels, "RGB"))
