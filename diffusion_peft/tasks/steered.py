"""What a tuning has beside the usual where pictures steer the denoiser (SCEdit with `control`)."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from diffusion_peft.data.conditions import MAKERS, Condition
from diffusion_peft.methods.scedit import condition_on, condition_sizes
from diffusion_peft.methods.scedit.condition import ConditionEncoder
from diffusion_peft.tasks.tuning_spec import SamplesSpec
from peft_kernels.data_errors import DataError

CHANNELS = 3  # of condition images


def steered(model: nn.Module, images: Tensor | None, guided: bool = False) -> AbstractContextManager[Any]:
    """Within the block condition images `[N, 3, S, S]` steer a model that can be steered."""
    if images is None or not condition_sizes(model):
        return nullcontext()
    return condition_on(model, images, guided=guided)


def check_samples(samples: SamplesSpec, condition: Condition) -> None:
    """Raise where the pictures on the way are asked for in a way that does not suit.

    Raises:
        DataError: prompts without pictures that steer, or pictures that steer nothing.
    """
    if condition.name and samples.prompts:
        raise DataError(
            "model.samples.prompts come without the pictures that data.condition takes: leave them out and set "
            "model.samples.pictures, the number of pictures of the data to draw from their conditions and captions"
        )
    if samples.pictures and not condition.name:
        raise DataError(
            f"model.samples.pictures is {samples.pictures}, and no pictures steer: name model.samples.prompts, or set "
            f"data.condition.name to one of {', '.join(MAKERS)}"
        )


def check_steering(model: nn.Module, condition: Condition, pixels: int) -> None:
    """Raise where what is trained and what is to steer it do not fit; a latent stands for `pixels` along a side.

    Raises:
        DataError: one is missing, or condition images are of another size or number of channels.
    """
    sizes = condition_sizes(model)
    if sizes and condition.name is None:
        raise DataError(
            "this method is steered by pictures, and none are made: set data.condition.name to one of "
            f"{', '.join(MAKERS)}, or method.control false"
        )
    if condition.name and not sizes:
        raise DataError(
            f"data.condition.name is {condition.name!r}, and nothing here is steered by pictures: set method.name "
            "scedit and method.control true, or leave the condition out"
        )
    for module in model.modules():
        if not isinstance(module, ConditionEncoder):
            continue
        if module.in_channels != CHANNELS:
            raise DataError(
                f"condition images have {CHANNELS} channels, method.pre_in_channels is {module.in_channels}"
            )
        if module.stride != pixels:
            raise DataError(
                f"a latent stands for {pixels} x {pixels} pixels, method.pre_strides for {module.stride}: let their "
                f"product be {pixels}"
            )
