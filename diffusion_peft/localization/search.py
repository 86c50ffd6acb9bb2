"""Which layers decide the text in a picture: every layer by itself reads another text, and the pictures are scored.

A call of the pipeline makes ``[target, source at l₁, source at l₂, ...]`` from the same noise: one run of the target
serves as many layers as fit in the batch, and nothing is kept from step to step. Where the text depends on neither step
nor picture (cross-attention of UNets) the target's states are put in and it does not run again. Then sets of the best
layers are scored the same way, to see where the text no longer gains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import nn

from diffusion_peft.localization.generations import Generations, encoded_once
from diffusion_peft.localization.layers import bare, chosen_layers, text_layers
from diffusion_peft.localization.measures import Measures, Metric, Reader
from diffusion_peft.localization.pairs import Pair, pairs_of
from diffusion_peft.localization.report import Localization

Told = Callable[[Localization, int, int], None]


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
    largest_set: int = 1,
    settings: dict[str, Any] | None = None,
    resume: Localization | None = None,
    told: Told | None = None,
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
        at_once: layers in one call, which has ``at_once · batch`` pictures, or ``(1 + at_once) · batch`` where the
            targets must run beside (joint attention, masked text).
        largest_set: afterwards the best two, three, ... layers are scored together, up to so many.
        settings: further arguments of the pipeline's call, such as `height`.
        resume: what a stopped search had found; it is gone on with, and must be of the same search.
        told: called with what is found, and how many of how many pictures are scored, after each call of the pipeline.

    Raises:
        ValueError: prompts or layers that cannot be used, an unknown score, or a report of another search.
    """
    pairs = pairs_of(prompts)
    known = text_layers(pipe) if layers is None else chosen_layers(pipe, layers)
    for name, number in (("batch", batch), ("at_once", at_once), ("largest_set", largest_set), ("steps", steps)):
        if number < 1:
            raise ValueError(f"`{name}` must be at least 1; found {number}")
    measure = Measures(reader, metrics or {})
    report = Localization(
        names=[layer.name for layer in known],
        indices=[layer.index for layer in known],
        score=measure.ranked_by(score),
        settings={
            "prompts": [list(pair) for pair in pairs],
            "steps": steps,
            "guidance": guidance,
            "start_step": start_step,
            "seed": seed,
            "batch": batch,
            "settings": {name: repr(value) for name, value in (settings or {}).items()},
            "measures": measure.names,
            "weights": digest(bare(pipe)),
        },
    )
    if resume is not None:
        report.go_on_from(resume)
    run = Generations(pipe, steps, guidance, start_step, settings=settings or {})
    search = Search(run, measure, report, pairs, range(seed, seed + len(pairs)), batch, at_once, told)
    singles = [(index,) for index in report.indices]
    sizes = range(2, min(largest_set, len(known)) + 1)
    search.total = len(pairs) * (len(singles) + len(sizes))
    search.score(singles)
    search.score([tuple(report.best(size)) for size in sizes])
    return report


@dataclass
class Search:
    """A search in progress: what is in the report already is passed over."""

    run: Generations
    measure: Measures
    report: Localization
    pairs: Sequence[Pair]
    seeds: Sequence[int]
    batch: int
    at_once: int
    told: Told | None
    total: int = 0

    def score(self, sets: Sequence[tuple[int, ...]]) -> None:
        """Score sets of layers on all pairs."""
        for first in range(0, len(self.pairs), self.batch):
            missing = [chosen for chosen in sets if self.report.pictures(*chosen) <= first]
            if missing:
                with encoded_once(self.run.pipeline):
                    self._score(missing, first)

    def _score(self, sets: Sequence[tuple[int, ...]], first: int) -> None:
        """Score sets of layers on a call's pairs, from the first one on."""
        pairs, seeds = self.pairs[first : first + self.batch], self.seeds[first : first + self.batch]
        target, source, states = self.run.plain(pairs, seeds)
        if self.report.pictures() <= first:
            self.report.add((), self.measure(source, source, target, pairs))
        for place in range(0, len(sets), self.at_once):
            now = sets[place : place + self.at_once]
            if states is None:
                found = self.run.together(pairs, seeds, now)[1:]
            else:
                found = self.run.injected(pairs, seeds, now, states)
            for chosen, pictures in zip(now, found, strict=True):
                self.report.add(chosen, self.measure(pictures, source, target, pairs))
            if self.told is not None:
                self.told(self.report, self.report.done, self.total)


def digest(model: nn.Module) -> str:
    """Of a model's weights: a search goes on with the same ones alone."""
    found = sha256()
    for name, tensor in model.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
