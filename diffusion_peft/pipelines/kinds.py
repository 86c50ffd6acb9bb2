"""The kinds of pipelines that can be tuned and sampled, by the pipeline's class."""

from typing import Any

from diffusion_peft.pipelines.kind import Given, Kind
from diffusion_peft.pipelines.transformer_kinds import ClassConditional, Flux, PixArt, StableDiffusion3
from diffusion_peft.pipelines.unet_kinds import StableDiffusion, StableDiffusionXL
from peft_kernels.data_errors import DataError

__all__ = ["KINDS", "Given", "Kind", "kind_of"]

KINDS: tuple[type[Kind], ...] = (
    StableDiffusion,
    StableDiffusionXL,
    ClassConditional,
    PixArt,
    StableDiffusion3,
    Flux,
)


def kind_of(pipeline: Any, max_tokens: int | None = None) -> Kind:
    """The pipeline's kind.

    Raises:
        DataError: none that is known; those that are, are told.
    """
    name = type(pipeline).__name__
    for kind in KINDS:
        if name in kind.pipelines:
            return kind(pipeline, max_tokens)
    known = ", ".join(name for kind in KINDS for name in kind.pipelines)
    raise DataError(f"a {name} cannot be tuned or sampled here: known are {known}")
