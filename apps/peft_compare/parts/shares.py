"""What each method gets of a budget."""

from collections.abc import Sequence
from html import escape

from peft_compare.budget import Share
from peft_compare.look import glyph


def shares(found: Sequence[Share]) -> str:
    """A line for each method: its size, and the parameters that this makes."""
    lines = "".join(
        f"<li>{glyph(share.method)}{escape(share.method)}: "
        + (f"{share.field} {share.value:,}, " if share.field else "")
        + f"{share.parameters:,}{'' if share.field else ' (one size only)'}</li>"
        for share in found
    )
    return f'<ul class="notes" aria-label="Sizes chosen">{lines}</ul>'
