"""Pictures of one scene whose layers read another text: several generations beside each other in one batch.

The first generation is the target's; each further one is the source's and reads the target's text in layers of its own.
Rows of one pair start from the same noise and, with stochastic schedulers, see the same noise at every step. Where the
text depends on neither step nor picture, its states are enough and the target need not run again.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffusion_peft.localization.layers import bare, text_layers
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

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"`steps` must be at least 1; found {self.steps}")
        if self.start_step > self.steps:
            raise ValueError(f"`start_step` must be at most {self.steps}, the number of steps; found {self.start_step}")

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

    def plain(self, pairs: Sequence[Pair], seeds: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """The targets' pictures, the sources', and the states of the targets' text ``[groups, pairs, tokens, width]``.

        There are no such states where the text is a stream that sees the picture, or is masked.
        """
        with first_call(bare(self.pipeline)) as call:
            target, source = self.together(pairs, seeds, [()])
        masked = call.get("encoder_attention_mask") is not None
        if masked or any(layer.joint for layer in text_layers(self.pipeline)):
            return target, source, None
        return target, source, call["encoder_hidden_states"].unflatten(0, (-1, 2, len(pairs)))[:, TARGET]

    def injected(
        self, pairs: Sequence[Pair], seeds: Sequence[int], sets: Sequence[Sequence[int]], states: Tensor
    ) -> list[Tensor]:
        """For each set of layers the sources' pictures that read the targets' text there; ``states`` are `plain`'s."""
        count, pictures = len(sets), len(pairs)
        target = states[:, None].expand(-1, count, -1, -1, -1).flatten(0, 2)
        rows = {
            layer: torch.tensor([layer in chosen for chosen in sets]).repeat_interleave(pictures).repeat(len(states))
            for layer in sorted({layer for chosen in sets for layer in chosen})
        }
        window = {"start_step": self.start_step, "end_step": self.end_step}
        with patch_text(self.pipeline, list(rows), target=target, rows=rows, heads=self.heads, **window):
            found = self.pictures([pair.source for pair in pairs] * count, list(seeds) * count)
        return list(found.split(pictures))

    def together(self, pairs: Sequence[Pair], seeds: Sequence[int], sets: Sequence[Sequence[int]]) -> list[Tensor]:
        """The target's pictures, then for each set of layers the source's that read the target's text there.

        An empty set is the source as it is.

        Raises:
            ValueError: the model reads a pair's prompts as the same text.
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
        with replaced, first_call(bare(self.pipeline)) as call:
            pictures = self.pictures(prompts, list(seeds) * count)
        if count > 1:
            texts = call["encoder_hidden_states"].unflatten(0, (-1, count, len(pairs)))[-1]
            for pair, target, source in zip(pairs, texts[TARGET], texts[TARGET + 1], strict=True):
                if pair.source != pair.target and torch.equal(target, source):
                    raise ValueError(
                        f"{pair.source!r} and {pair.target!r} are the same text to this pipeline: they differ only "
                        f"beyond the {len(target)} tokens that it reads"
                    )
        return list(pictures.split(len(pairs)))


@contextmanager
def quiet(pipeline: Any) -> Iterator[None]:
    """Within the block the pipeline shows no progress of its own: it is called once for every few layers."""
    before = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        pipeline.set_progress_bar_config(**before)


@contextmanager
def first_call(model: Any) -> Iterator[dict[str, Any]]:
    """Within the block the arguments of a denoiser's first call are noted, by name."""
    noted: dict[str, Any] = {}
    signature = inspect.signature(model.forward)

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not noted:
            noted.update(signature.bind_partial(*args, **kwargs).arguments)

    handle = model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield noted
    finally:
        handle.remove()


@contextmanager
def encoded_once(pipeline: Any) -> Iterator[None]:
    """Within the block a pipeline encodes each prompt once, and takes it out again whenever it is asked for."""
    encode, kept = pipeline.encode_prompt, dict[str, tuple[Tensor | None, ...]]()
    signature = inspect.signature(encode)

    def known(*args: Any, **kwargs: Any) -> tuple[Tensor | None, ...]:
        given = signature.bind(*args, **kwargs).arguments
        prompts = given["prompt"]
        if not isinstance(prompts, list) or any(isinstance(value, Tensor) for value in given.values()):
            return encode(*args, **kwargs)
        rows = []
        for place in range(len(prompts)):
            own = {name: [value[place]] if isinstance(value, list) else value for name, value in given.items()}
            if repr(own) not in kept:
                kept[repr(own)] = encode(**own)
            rows.append(kept[repr(own)])
        return tuple(_stacked(parts) for parts in zip(*rows, strict=True))

    pipeline.encode_prompt = known
    try:
        yield
    finally:
        del pipeline.encode_prompt


def _stacked(parts: Sequence[Tensor | None]) -> Tensor | None:
    """The rows of several prompts; what is the same for all of them (places of tokens) stays as it is."""
    rows = [part for part in parts if part is not None]
    return torch.cat(rows) if rows and len(rows[0]) == 1 else parts[0]
