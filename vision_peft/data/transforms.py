"""From a picture to what the model takes: its own size, interpolation, mean and deviation; training varies it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2


@dataclass(frozen=True)
class Variation:
    """How training pictures vary. All zeros: they do not.

    Attributes:
        crop_padding: pixels of border added before a random crop back to the model's size (reflected).
        smallest_area: random resized crops take at least this share of the picture; 1 switches them off.
        random_crop: crop the model's size out of the resized picture at random; otherwise its middle.
        flip: probability of a left-right mirror image.
        color_jitter: strength of random brightness, contrast and saturation.
        random_erase: probability of a random rectangle set to zero.
    """

    crop_padding: int = 0
    smallest_area: float = 1.0
    random_crop: bool = False
    flip: float = 0.0
    color_jitter: float = 0.0
    random_erase: float = 0.0


def evaluation_transform(model_data: dict[str, Any]) -> Callable[[Image.Image], Tensor]:
    """timm's own evaluation transform for `timm.data.resolve_model_data_config(model)`."""
    return create_transform(**model_data, is_training=False)  # type: ignore[return-value]


def training_transform(model_data: dict[str, Any], variation: Variation) -> Callable[[Image.Image], Tensor]:
    """Random pictures from torchvision's transforms, drawing from torch's global generator alone.

    Without variation it is the evaluation's: resized to the size over `crop_pct`, by the short side or (`crop_mode`
    "squash") without regard to the sides' ratio, and cropped.
    """
    size = model_data["input_size"][-2:]
    interpolation = InterpolationMode(model_data["interpolation"])
    if variation.smallest_area < 1:
        area = (variation.smallest_area, 1.0)
        steps: list[nn.Module] = [v2.RandomResizedCrop(size, area, interpolation=interpolation)]
    else:
        scaled = [math.floor(side / model_data["crop_pct"]) for side in size]
        squash = model_data["crop_mode"] == "squash" or scaled[0] != scaled[1]
        crop = v2.RandomCrop(size) if variation.random_crop else v2.CenterCrop(size)
        steps = [v2.Resize(scaled if squash else scaled[0], interpolation), crop]
    steps.append(v2.PILToTensor())
    if variation.crop_padding:
        steps.append(v2.RandomCrop(size, padding=variation.crop_padding, padding_mode="reflect"))
    if variation.flip:
        steps.append(v2.RandomHorizontalFlip(variation.flip))
    if variation.color_jitter:
        steps.append(v2.ColorJitter(*[variation.color_jitter] * 3))
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(model_data["mean"], model_data["std"])]
    if variation.random_erase:
        steps.append(v2.RandomErasing(variation.random_erase))
    return v2.Compose(steps)
