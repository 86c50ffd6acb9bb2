"""Adapters with a slider each, to be mixed into one row."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from peft_compare.look import glyph
from peft_compare.parts.grid import STEP, STRONGEST


@dataclass(frozen=True)
class Voice:
    """An adapter that can be mixed, by its run's id and method."""

    key: str
    name: str
    method: str
    folder: Path


def mixer(voices: Sequence[Voice]) -> str:
    """The sliders, all at 0, and the button."""
    if not voices:
        return '<p class="quiet">Adapters that can be mixed will stand here when a training is done.</p>'
    rows = "".join(
        f'<li><label><span class="name">{glyph(voice.method)}{escape(voice.name)}</span><input type="range" min="0" '
        f'max="{STRONGEST}" step="{STEP}" value="0" data-mix="{voice.key}" aria-label="Weight of {escape(voice.name)}">'
        "<output>0.00</output></label></li>"
        for voice in voices
    )
    return (
        f'<ul class="mixer" aria-label="Weights of the adapters">{rows}</ul>'
        '<button type="button" class="plain-button" data-mix-draw>Draw the mix</button>'
    )
