"""Which layers decide the text in a picture: every layer by itself reads another text, and the pictures are scored.

A call of the pipeline makes ``[target, source at l₁, source at l₂, ...]`` from the same noise: one run of the target
serves as many layers as fit in the batch, and nothing is kept from step to step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion_peft.localization.layers import chosen_layers, text_layers
from diffusion_peft.localization.measures import Measures, Metric, Reader
from diffusion_peft.localization.pairs import Pair, pairs_of
from diffusion_peft.localization.patching import patch_text
from diffusion_peft.localization.projections import Slots
from diffusion_peft.localization.report import Localization

TARGET = 0  # place of the target's run among the generations of a batch


@dataclass(frozen=True)
class Run:
    """How every picture of a search is made.

    Args:
        pipeline: to call.
        steps: of its scheduler.
        guidance: strength of its guidance.
        start_step: first step to replace in.
        settings: further arguments of its call.
    """

    pipeline: Any
    steps: int
    guidance: float
    start_step: int
    settings: dict[str, Any]

    def pictures(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """One picture a prompt, ``[N, 3, H, W]`` in 0 to 1; rows of one seed see the same noise, at every step."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        called = {"num_inference_steps": self.steps, "guidance_scale": self.guidance, **self.settings}
        with torch.no_grad():
            images = self.pipeline(list(prompts), generator=generators, output_type="np", **called).images
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def plain(self, pairs: Sequence[Pair], seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Pictures of the sources and of the targets, nothing replaced."""
        prompts = [pair.target for pair in pairs] + [pair.source for pair in pairs]
        both = self.pictures(prompts, [*seeds, *seeds])
        return both[len(pairs) :], both[: len(pairs)]

    def replaced(self, pairs: Sequence[Pair], seeds: Sequence[int], layers: Sequence[int]) -> list[Tensor]:
        """For each of these layers the pictures of the sources that read the targets there."""
        count = 1 + len(layers)
        prompts = [pair.target for pair in pairs] + [pair.source for pair in pairs] * len(layers)
        slots = {layer: Slots(len(pairs), count, {place: TARGET}) for place, layer in enumerate(layers, 1)}
        with patch_text(self.pipeline, list(layers), slots=slots, start_step=self.start_step):
            found = self.pictures(prompts, list(seeds) * count)
        return list(found.split(len(pairs)))[1:]


def localize_text_layers(
    pipe: Any,
    prompts: Sequence[str | tuple[str, str]],
    *,
    layers: Sequence[int | str] | None = None,
    reader: Reader | None = None,
    metrics: dict[str, Metric] | None = None,
    score: str | None = None,
    steps: int = 50,
    guidance: float = 5.0,
    start_step: int = 0,
    seed: int = 42,
    batch: int = 4,
    at_once: int = 1,
    settings: dict[str, Any] | None = None,
) -> Localization:
    """Score every text layer by what happens when it alone reads another text.

    A layer that decides the text draws the target's word and keeps the source's scene.

    Args:
        pipe: a text-to-image pipeline of diffusers (SD, SDXL, DeepFloyd IF, SD3, Flux); it is left as it was.
        prompts: pairs (source, target), or prompts with one word in quotes, which are exchanged among them.
        layers: candidates by number or name; all where none are given.
        reader: what stands in pictures ``[N, 3, H, W]`` in 0 to 1, such as an OCR.
        metrics: further measures by name, each called with pictures, those of the sources, those of the targets and the
            pairs; one number a picture.
        score: name of the measure that layers are ranked by, higher first; the F1 of the words to the target where
            there is a reader, otherwise the likeness of structure to the target's picture.
        steps: of the scheduler.
        guidance: strength of the guidance.
        start_step: first step to replace in.
        seed: of the first picture; each pair has its own.
        batch: pairs in one call.
        at_once: layers in one call, which has ``(1 + at_once) · batch`` pictures.
        settings: further arguments of the pipeline's call, such as `height`.

    Raises:
        ValueError: prompts or layers that cannot be used, or an unknown score.
    """
    pairs = pairs_of(prompts)
    known = text_layers(pipe) if layers is None else chosen_layers(pipe, layers)
    if batch < 1 or at_once < 1:
        raise ValueError(f"`batch` and `at_once` must be at least 1; found {batch} and {at_once}")
    run = Run(pipe, steps, guidance, start_step, settings or {})
    measure = Measures(reader, metrics or {})
    report = Localization(
        names=[layer.name for layer in known],
        indices=[layer.index for layer in known],
        score=measure.ranked_by(score),
        settings={"prompts": pairs, "steps": steps, "guidance": guidance, "start_step": start_step, "seed": seed},
    )
    with quiet(pipe):
        for first in range(0, len(pairs), batch):
            chunk = pairs[first : first + batch]
            seeds = range(seed + first, seed + first + len(chunk))
            source, target = run.plain(chunk, seeds)
            report.add(None, measure(source, source, target, chunk))
            for place in range(0, len(known), at_once):
                together = [layer.index for layer in known[place : place + at_once]]
                for index, pictures in zip(together, run.replaced(chunk, seeds, together), strict=True):
                    report.add(index, measure(pictures, source, target, chunk))
    return report


@contextmanager
def quiet(pipeline: Any) -> Iterator[None]:
    """Within the block the pipeline shows no progress: it is called once for every few layers."""
    before = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        pipeline.set_progress_bar_config(**before)
