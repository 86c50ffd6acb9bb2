"""Pictures from a pipeline of any kind: one seed a picture, so that each can be made again alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from diffusion_peft.pipelines.kinds import Given, Kind
from diffusion_peft.pipelines.one_step import one_step_scheduler
from peft_kernels.data_errors import DataError


@dataclass(frozen=True)
class Sampling:
    """How pictures are made: steps of the scheduler, strength of the guidance, pixels along a side.

    A single step is taken at the last timestep, whatever the pipeline's scheduler would do (`one_step_scheduler`).
    """

    steps: int
    guidance: float
    size: int


def check_sampling(kind: Kind, seeds: Sequence[int], how: Sampling) -> None:
    """Raise where the pipeline cannot draw so.

    Raises:
        DataError: the size does not suit, the steps are more than the scheduler has, or a seed is beyond 64 bits.
    """
    kind.check_size(how.size)
    most = kind.pipeline.scheduler.config.num_train_timesteps
    if how.steps > most:
        raise DataError(f"the pipeline's scheduler has {most} timesteps, fewer than the {how.steps} steps asked for")
    for seed in seeds:
        if not 0 <= seed < 2**64:
            raise DataError(f"a seed must be from 0 to {2**64 - 1}; found {seed}")


def sample(kind: Kind, given: Given, absent: Given, seeds: Sequence[int], how: Sampling) -> list[Image.Image]:
    """One picture for each row of `given` and its seed; `absent` has one row, or as many.

    The noise of a picture comes from its own generator on the CPU, whichever device computes.
    """
    return drawn(kind, given, absent, seeds, how, "pil")


def drawn(kind: Kind, given: Given, absent: Given, seeds: Sequence[int], how: Sampling, output: str) -> Any:
    """As `sample`, with an `output_type` of diffusers (`latent` gives `[N, C, h, w]`, as the denoiser takes them)."""
    count, model = len(seeds), kind.denoiser

    def placed(rows: Given) -> Given:
        moved = {name: row.expand(count, *row.shape[1:]).to(model.device) for name, row in rows.items()}
        return {name: row.to(kind.dtype) if row.is_floating_point() else row for name, row in moved.items()}

    settings: dict[str, Any] = {"num_inference_steps": how.steps, "guidance_scale": how.guidance}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    one = one_step_scheduler(kind.pipeline.scheduler) if how.steps == 1 else kind.pipeline.scheduler
    with torch.no_grad(), with_scheduler(kind.pipeline, one):
        called = {**kind.asked(placed(given), placed(absent)), **kind.sized(how.size), **settings}
        return kind.pipeline(**called, generator=generators, output_type=output).images


@contextmanager
def with_scheduler(pipeline: Any, scheduler: Any) -> Iterator[None]:
    """Within the block the pipeline has another scheduler."""
    before = pipeline.scheduler
    pipeline.register_modules(scheduler=scheduler)
    try:
        yield
    finally:
        pipeline.register_modules(scheduler=before)


def starting_noise(shape: Sequence[int], seed: int, dtype: torch.dtype) -> Tensor:
    """The noise `[C, h, w]` that the pipeline of this `dtype` begins a picture of this seed with, as float32."""
    return randn_tensor(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=dtype).float()


def grid(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size in rows."""
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % columns * width, number // columns * height))
    return sheet
