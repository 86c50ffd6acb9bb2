"""Singular values of the changes of all layers, one line a layer, the median of all above them."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from statistics import median
from typing import Any

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 520.0, 230.0, 46.0, 12.0, 14.0, 34.0
_DECADES = 4  # shown below the largest value


def spectra(changes: Sequence[Mapping[str, Any]]) -> str:
    """The figure; nothing where no change is a matrix."""
    known = [change for change in changes if change["singular"]]
    if not known:
        return ""
    title = "Singular values of each layer's change"
    most = max(change["singular"][0] for change in known)
    longest = max(len(change["singular"]) for change in known)
    top = math.log10(most) + 0.1
    low = min(math.log10(max(min(change["singular"]), most * 10**-_DECADES)) for change in known) - 0.1

    def line(values: Sequence[float]) -> str:
        points = []
        for place, value in enumerate(values):
            if value > 0 and (height := (math.log10(value) - low) / (top - low)) >= 0:
                x = LEFT + (WIDTH - LEFT - RIGHT) * (place / max(1, longest - 1))
                points.append(f"{x:.1f},{TOP + (HEIGHT - TOP - BOTTOM) * (1 - height):.1f}")
        if len(points) == 1:  # of rank one: a short dash
            x, y = points[0].split(",")
            points.append(f"{float(x) + 6:.1f},{y}")
        return " ".join(points)

    parts = [_grid(low, top, longest)]
    for change in known:
        parts.append(
            f'<polyline points="{line(change["singular"])}" fill="none" stroke="var(--accent)" stroke-opacity="0.35">'
            f"<title>{escape(change['name'])}</title></polyline>"
        )
    middle = [
        median(change["singular"][place] if place < len(change["singular"]) else 0.0 for change in known)
        for place in range(longest)
    ]
    parts.append(f'<polyline points="{line(middle)}" fill="none" stroke="var(--ink)" stroke-width="2"/>')
    return (
        f'<figure class="figure"><h3>{title}</h3><svg class="plot" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" '
        f'aria-label="{escape(f"{title}. {finding(known)}")}">{"".join(parts)}</svg>'
        '<ul class="key"><li>dark: the median over layers</li></ul></figure>'
    )


def finding(known: Sequence[Mapping[str, Any]]) -> str:
    """How many directions count."""
    ranks = [change["effective_rank"] for change in known if change["effective_rank"]]
    whole = median(len(change["singular"]) for change in known)
    return f"Of {whole:g} values, {median(ranks):.3g} count in the median layer (effective rank)" if ranks else ""


def _grid(low: float, top: float, longest: int) -> str:
    inner, bottom = HEIGHT - TOP - BOTTOM, HEIGHT - BOTTOM
    parts = []
    steps = (1, 2, 5) if top - low < 1.5 else (1,)
    ticks = [step * 10.0**decade for decade in range(math.floor(low), math.ceil(top) + 1) for step in steps]
    for tick in (tick for tick in ticks if low <= math.log10(tick) <= top):
        y = TOP + inner * (1 - (math.log10(tick) - low) / (top - low))
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>'
            f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    step = max(1, round(longest / 8))
    for place in range(0, longest, step):
        x = LEFT + (WIDTH - LEFT - RIGHT) * place / max(1, longest - 1)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 15:.1f}" text-anchor="middle">{place + 1}</text>')
    parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}" stroke="var(--edge)"/>')
    parts.append(f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 3}" text-anchor="middle">from the largest on</text>')
    return "".join(parts)
