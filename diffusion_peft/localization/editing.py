"""What localized layers are for: another text in the same scene, and prompts whose unwanted words are not drawn.

Both read the target's text in these layers alone; all others see the source, which keeps background, style and layout.
Staniszewski et al., ICLR 2025 (arXiv 2502.09835), section 5; the first steps may stay the source's (`start_step`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusion_peft.localization.generations import TARGET, Generations
from diffusion_peft.localization.layers import chosen_layers, published_start
from diffusion_peft.localization.pairs import Pair, pairs_of

Replace = Mapping[str, str] | Callable[[str], str]


class Edited(NamedTuple):
    """Pictures ``[N, 3, H, W]`` in 0 to 1, all from the same noise.

    Attributes:
        source: as the source prompt draws it.
        edited: the source's scene with the target's text.
        target: as the target prompt draws it.
    """

    source: Tensor
    edited: Tensor
    target: Tensor


def edit_text(
    pipe: Any,
    prompts: Sequence[str | tuple[str, str]],
    layers: str | Sequence[int | str] = "auto",
    *,
    steps: int = 50,
    guidance: float = 5.0,
    start_step: int | None = None,
    end_step: int | None = None,
    heads: Mapping[int | str, Sequence[int]] | None = None,
    seeds: Sequence[int] | None = None,
    latents: Tensor | None = None,
    batch: int = 4,
    settings: Mapping[str, Any] | None = None,
) -> Edited:
    """Draw each source's scene with its target's text.

    Args:
        pipe: a text-to-image pipeline of diffusers; it is left as it was.
        prompts: pairs (source, target), or prompts with one word in quotes, which are exchanged among them.
        layers: numbers in the order of execution, names, or ``auto`` for those that the paper found.
        steps: of the scheduler.
        guidance: strength of the guidance.
        start_step: first step in which the target's text is read; the earlier ones lay out the scene. None is the
            paper's for ``auto``, otherwise 0.
        end_step: first step in which it no longer is.
        heads: of some layers only these read it.
        seeds: one a pair; 42, 43, ... where none are given.
        latents: what the pictures start from instead of noise, one row a pair; see `invert_pictures`.
        batch: pairs in one call, which has three pictures for each.
        settings: further arguments of the pipeline's call, such as `height`.

    Raises:
        ValueError: prompts, layers, steps, seeds or latents that cannot be used.
    """
    pairs = pairs_of(prompts)
    numbers = [layer.index for layer in chosen_layers(pipe, layers)]
    seeds = range(42, 42 + len(pairs)) if seeds is None else seeds
    _one_each("seeds", len(seeds), len(pairs))
    if batch < 1:
        raise ValueError(f"`batch` must be at least 1; found {batch}")
    if latents is not None:
        _one_each("latents", len(latents), len(pairs))
    found = []
    for first in range(0, len(pairs), batch):
        part = slice(first, first + batch)
        start = _start(pipe, layers, start_step)
        own = None if latents is None else latents[part]
        run = Generations(pipe, steps, guidance, start, end_step, heads, own, settings or {})
        target, source, edited = run.together(pairs[part], seeds[part], [(), numbers])
        found.append(Edited(source, edited, target))
    return Edited(*(torch.cat(pictures) for pictures in zip(*found, strict=True)))


def replace_words(
    pipe: Any,
    prompts: Sequence[str],
    replace: Replace,
    layers: str | Sequence[int | str] = "auto",
    *,
    steps: int = 50,
    guidance: float = 5.0,
    start_step: int = 0,
    seeds: Sequence[int] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> tuple[Tensor, list[str]]:
    """Draw prompts so that unwanted words are never written: other words stand in their place, in the same scene.

    Args:
        pipe: a text-to-image pipeline of diffusers; it is left as it was.
        prompts: as people ask for them.
        replace: unwanted words and what to write instead (whole words, whatever their case), or a function from a
            prompt to the one whose text is to be drawn. A prompt that stays the same is drawn as it is.
        layers: as for `edit_text`; every step reads the replacement.
        steps: of the scheduler.
        guidance: strength of the guidance.
        start_step: first step in which the replacement is read; before it the unwanted word is.
        seeds: one a prompt; 42, 43, ... where none are given.
        settings: further arguments of the pipeline's call.

    Returns:
        the pictures ``[N, 3, H, W]`` in 0 to 1, and the prompts whose text they have.

    Raises:
        ValueError: prompts, layers or seeds that cannot be used.
    """
    if isinstance(prompts, str) or not prompts:
        raise ValueError(f"`prompts` must be a list of prompts, not empty; found {prompts!r}")
    numbers = [layer.index for layer in chosen_layers(pipe, layers)]
    seeds = range(42, 42 + len(prompts)) if seeds is None else seeds
    _one_each("seeds", len(seeds), len(prompts))
    run = Generations(pipe, steps, guidance, start_step, settings=settings or {})
    wanted = [replaced(prompt, replace) for prompt in prompts]
    drawn = []
    for prompt, other, seed in zip(prompts, wanted, seeds, strict=True):
        changed = prompt != other
        found = run.together([Pair(prompt, other)], [seed], [numbers] if changed else [])
        drawn.append(found[1] if changed else found[TARGET])
    return torch.cat(drawn), wanted


def replaced(prompt: str, replace: Replace) -> str:
    """A prompt without unwanted words."""
    if callable(replace):
        return replace(prompt)
    if not isinstance(replace, Mapping):
        raise ValueError(f"`replace` must map words to others, or be a function of a prompt; found {replace!r}")
    others = {word.lower(): other for word, other in replace.items()}
    pattern = "|".join(re.escape(word) for word in sorted(others, key=len, reverse=True))
    if not pattern:
        return prompt
    return re.sub(rf"(?<!\w)(?:{pattern})(?!\w)", lambda found: others[found[0].lower()], prompt, flags=re.IGNORECASE)


def _start(pipe: Any, layers: str | Sequence[int | str], start_step: int | None) -> int:
    if start_step is not None:
        return start_step
    return published_start(pipe) if layers == "auto" else 0


def _one_each(what: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise ValueError(f"`{what}` must be one for each of {wanted} prompts; found {found}")
