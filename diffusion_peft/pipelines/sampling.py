"""Pictures from a pipeline of any kind: one seed a picture, so that each can be made again alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from diffusion_peft.pipelines.kinds import Given, Kind


@dataclass(frozen=True)
class Sampling:
    """How pictures are made: steps of the scheduler, strength of the guidance, pixels along a side."""

    steps: int
    guidance: float
    size: int


def sample(kind: Kind, given: Given, absent: Given, seeds: Sequence[int], how: Sampling) -> list[Image.Image]:
    """One picture for each row of `given` and its seed; `absent` has one row, or as many.

    The noise of a picture comes from its own generator on the CPU, whichever device computes.
    """
    count, model = len(seeds), kind.denoiser

    def placed(rows: Given) -> Given:
        moved = {name: row.expand(count, *row.shape[1:]).to(model.device) for name, row in rows.items()}
        return {name: row.to(kind.dtype) if row.is_floating_point() else row for name, row in moved.items()}

    settings: dict[str, Any] = {"num_inference_steps": how.steps, "guidance_scale": how.guidance}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    with torch.no_grad():
        called = {**kind.asked(placed(given), placed(absent)), **kind.sized(how.size), **settings}
        return kind.pipeline(**called, generator=generators, output_type="pil").images


def grid(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size in rows."""
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % columns * width, number // columns * height))
    return sheet
