"""Pairs of prompts that differ in the word that is to be drawn."""

import re
from collections.abc import Sequence
from typing import NamedTuple

QUOTED = re.compile(r'"([^"]+)"')


class Pair(NamedTuple):
    """A prompt whose scene is kept, and one whose text is to be drawn."""

    source: str
    target: str

    @property
    def source_text(self) -> str:
        """What stands in quotes in the source, all of it where nothing does."""
        return quoted(self.source)

    @property
    def target_text(self) -> str:
        """What stands in quotes in the target."""
        return quoted(self.target)


def quoted(prompt: str) -> str:
    """The text in quotes of a prompt; the prompt where there is none."""
    return " ".join(QUOTED.findall(prompt)) or prompt


def pairs_of(prompts: Sequence[str | tuple[str, str]]) -> list[Pair]:
    """Pairs as they are given, or each prompt with another prompt's quoted word in place of its own.

    Raises:
        ValueError: no prompt, prompts without one word in quotes, or too few different words to exchange them.
    """
    if isinstance(prompts, str) or not prompts:
        raise ValueError(f"`prompts` must be a list of prompts or of (source, target) pairs; found {prompts!r}")
    if all(isinstance(prompt, (tuple, list)) and len(prompt) == 2 for prompt in prompts):
        wrong = [part for prompt in prompts for part in prompt if not isinstance(part, str)]
        if wrong:
            raise ValueError(f"a (source, target) pair must be two texts; found {wrong[0]!r}")
        return [Pair(*prompt) for prompt in prompts]
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError("`prompts` must be all prompts or all (source, target) pairs")
    sources = [str(prompt) for prompt in prompts]
    for prompt in sources:
        if len(QUOTED.findall(prompt)) != 1:
            raise ValueError(
                f'a prompt without target needs one text in quotes, as in: a sign "word"; found {prompt!r}'
            )
    words = [quoted(prompt) for prompt in sources]
    return [
        Pair(prompt, QUOTED.sub(lambda _, word=word: f'"{word}"', prompt))
        for prompt, word in zip(sources, exchanged(words), strict=True)
    ]


def exchanged(words: Sequence[str]) -> list[str]:
    """The same words in another order, in which none stands where it stood.

    Raises:
        ValueError: one word makes up more than half of them, so that there is no such order.
    """
    order = sorted(range(len(words)), key=lambda place: words[place])
    most = max(words.count(word) for word in set(words))
    if 2 * most > len(words):
        raise ValueError(
            f"{len(words)} prompts with {len(set(words))} different words cannot exchange them: give pairs"
        )
    found = [""] * len(words)
    for number, place in enumerate(order):  # equal words stand together, none more than `most` times
        found[place] = words[order[(number + most) % len(order)]]
    return found
