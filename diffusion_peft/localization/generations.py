"""Pictures of one scene whose layers read another text: several generations beside each other in one batch.

The first generation is the target's; each further one is the source's and reads the target's text in layers of its own.
Rows of one pair start from the same noise and, with stochastic schedulers, see the same noise at every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffusion_peft.localization.pairs import Pair
from diffusion_peft.localization.patching import patch_text
from diffusion_peft.localization.projections import Slots

TARGET = 0  # place of the target's run among the generations of a batch


@dataclass(frozen=True)
class Generations:
    """How pictures are made.

    Attributes:
        pipeline: to call.
        steps: of its scheduler.
        guidance: strength of its guidance.
        start_step: first step in which another text is read.
        end_step: first step in which it no longer is.
        heads: of some layers only these read it.
        latents: what the pairs' pictures start from instead of noise, one row a pair.
        settings: further arguments of the pipeline's call.
    """

    pipeline: Any
    steps: int
    guidance: float
    start_step: int = 0
    end_step: int | None = None
    heads: Mapping[int | str, Sequence[int]] | None = None
    latents: Tensor | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def pictures(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """One picture a prompt, ``[N, 3, H, W]`` in 0 to 1."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        called = {"num_inference_steps": self.steps, "guidance_scale": self.guidance, **self.settings}
        for name, value in self.settings.items():
            if name.startswith("negative_prompt") and isinstance(value, str):
                called[name] = [value] * len(prompts)  # pipelines want as many as prompts
        if self.latents is not None:
            called["latents"] = self.latents.repeat(len(prompts) // len(self.latents), 1, 1, 1)
        with torch.no_grad(), quiet(self.pipeline):
            images = self.pipeline(list(prompts), generator=generators, output_type="np", **called).images
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def together(self, pairs: Sequence[Pair], seeds: Sequence[int], sets: Sequence[Sequence[int]]) -> list[Tensor]:
        """The target's pictures, then for each set of layers the source's that read the target's text there.

        An empty set is the source as it is.
        """
        prompts = [pair.target for pair in pairs] + [pair.source for pair in pairs] * len(sets)
        count = 1 + len(sets)
        layers = sorted({layer for chosen in sets for layer in chosen})
        slots = {
            layer: Slots(len(pairs), count, {place: TARGET for place, chosen in enumerate(sets, 1) if layer in chosen})
            for layer in layers
        }
        window = {"start_step": self.start_step, "end_step": self.end_step}
        replaced: Any = nullcontext()
        if layers:
            replaced = patch_text(self.pipeline, layers, slots=slots, heads=self.heads, **window)
        with replaced:
            return list(self.pictures(prompts, list(seeds) * count).split(len(pairs)))


@contextmanager
def quiet(pipeline: Any) -> Iterator[None]:
    """Within the block the pipeline shows no progress of its own: it is called once for every few layers."""
    before = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        pipeline.set_progress_bar_config(**before)
