"""The condition images of adapters that pictures steer, computed or given, for pictures that are drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion_peft.data.conditions import Condition
from diffusion_peft.data.folder import on_white
from diffusion_peft.data.framing import Framing
from diffusion_peft.methods.scedit import condition_sizes
from peft_runs.errors import RunError, UsageError
from peft_runs.put_on import Weighed

MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def steering_of(
    denoiser: Any,
    adapters: Sequence[Weighed],
    images: Sequence[Path],
    conditions: Sequence[Path],
    prompts: int,
    size: int,
) -> dict[str, Tensor]:
    """A condition image for every prompt, or one for all, by the name of each adapter that is steered.

    Args:
        denoiser: carries the adapters, which `put_on` named.
        adapters: as they were put on.
        images: pictures of any size, of which each adapter's condition is taken.
        conditions: instead, condition images as they are.
        prompts: their number.
        size: pixels along a side of what is drawn.

    Returns:
        `[1 or prompts, c, size, size]` in [0, 1].

    Raises:
        UsageError: too few or too many, of another size or mode, or none where some are needed.
        DataError: an adapter does not say what it is steered by.
        RunError: a picture cannot be read.
    """
    sizes = condition_sizes(denoiser)
    folders = {name: adapters[int(name.rpartition("_")[2])].folder for name in sizes}
    if not sizes:
        if images or conditions:
            raise UsageError("none of these adapters is steered by pictures: leave --image and --condition out")
        return {}
    named = ", ".join(str(folder) for folder in folders.values())
    if conditions:
        if len(conditions) != len(sizes):
            raise UsageError(
                f"{len(conditions)} condition images are given for {len(sizes)} adapters that are steered by pictures "
                f"({named}): add --condition FILE once for each, in this order"
            )
        pairs = zip(sizes.items(), conditions, strict=True)
        return {name: ready(path, channels, size)[None] for (name, channels), path in pairs}
    if not images:
        raise UsageError(f"{named} is steered by pictures: add --image FILE, or --condition FILE for each")
    if len(images) not in (1, prompts):
        raise UsageError(
            f"{len(images)} pictures are given for {prompts} prompts: add --image once, or for each prompt"
        )
    pictures = [on_white(opened(path).convert("RGBA"), str(path), least=1) for path in images]
    squares = [Framing(size).framed(picture, np.random.default_rng(0))[0] for picture in pictures]
    computed = {name: Condition.load(folder) for name, folder in folders.items()}
    return {name: torch.stack([condition.tensor(one) for one in squares]) for name, condition in computed.items()}


def opened(path: Path) -> Image.Image:
    """A picture of a file.

    Raises:
        RunError: it is none.
    """
    try:
        with Image.open(path) as picture:
            return picture.copy()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RunError(f"{path} is not a readable picture: {error}") from None


def ready(path: Path, channels: int, size: int) -> Tensor:
    """A condition image as it is, float32 `[c, size, size]` in [0, 1].

    Raises:
        UsageError: it has another size or mode.
    """
    picture, mode = opened(path), MODES.get(channels)
    if picture.mode != mode or picture.size != (size, size):
        raise UsageError(
            f"the condition image {path} is {picture.width} x {picture.height} of mode {picture.mode}, expected "
            f"{size} x {size} of mode {mode}: convert it, or give the picture it is made from as --image"
        )
    return torch.from_numpy(np.array(picture)).view(size, size, channels).permute(2, 0, 1).float() / 255


def as_picture(image: Tensor) -> Image.Image:
    """A condition image `[c, S, S]` in [0, 1] as RGB, for a grid."""
    pixels = (image[:3] * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels.squeeze(-1) if len(image) == 1 else pixels).convert("RGB")
