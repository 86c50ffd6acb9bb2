"""Pictures in rows: a set's with their captions, and how samples changed in the course of a training."""

from collections.abc import Mapping, Sequence
from html import escape

from peft_compare.look import glyph


def thumbnails(pictures: Sequence[tuple[str, str]], name: str, count: int) -> str:
    """The first pictures of a set, with their captions."""
    cells = "".join(
        f'<li><img src="{address}" alt="{escape(caption)}" title="{escape(caption)}" width="48" height="48"></li>'
        for address, caption in pictures
    )
    more = f"{count} pictures" if count <= len(pictures) else f"{len(pictures)} of {count} pictures"
    said = escape(pictures[0][1]) if pictures else ""
    return (
        f'<ul class="thumbs" aria-label="Pictures of {escape(name)}">{cells}</ul>'
        f'<p class="quiet">{more}; the first says “{said}”</p>'
    )


def strips(strip: Mapping[str, Sequence[tuple[int, str]]], prompts: Sequence[str], key: str) -> str:
    """A strip for each method: what it draws after more and more steps, the same prompts and seeds.

    Args:
        strip: method → steps done and the picture's address.
        prompts: rows of each picture, from above.
        key: of the figure on its page.
    """
    rows = ""
    for method, pictures in strip.items():
        cells = "".join(
            f'<li><img src="{address}" alt="{escape(method)} after {step} steps: {escape("; ".join(prompts))}" '
            f'loading="lazy"><span class="quiet">{step}</span></li>'
            for step, address in pictures
        )
        rows += (
            f'<div class="strip"><h4>{glyph(method)}{escape(method)}</h4><ul tabindex="0" '
            f'aria-label="Samples of {escape(method)} by steps done">{cells}</ul></div>'
        )
    if not rows:
        return ""
    said = ", ".join(f"“{escape(prompt)}”" for prompt in prompts)
    above = f" From above {said}." if said else ""
    return (
        f'<section class="strips" data-key="{escape(key)}"><h3>Samples while training</h3><div class="strip-row">{rows}'
        f'</div><p class="quiet">Steps done below each column, the same seeds throughout.{above}</p></section>'
    )
