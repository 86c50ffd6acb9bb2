"""Lines and points as one small SVG in the page's colours, with the same figures as a table for those who cannot see.

One drawing serves light and dark, and costs no more than the string it is: pages that look every second draw it anew.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from peft_compare.look import glyph, scroll
from peft_compare.parts.labels import Box, beside
from peft_runs.figure_style import marker_outline, shade

LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 22.0, 34.0
MARK = 10.0


@dataclass(frozen=True)
class Series:
    """One method's points, or nobody's in particular; `deviations` are those of y, over seeds."""

    method: str
    x: Sequence[float]
    y: Sequence[float]
    deviations: Sequence[float | None] = ()


@dataclass(frozen=True)
class Axis:
    """What an axis says and how it writes its numbers."""

    label: str
    write: Callable[[float], str]
    logarithmic: bool = False
    whole: bool = False


def chart(
    title: str,
    finding: str,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    lines: bool = True,
    named: bool = False,
    key: str = "",
    size: tuple[int, int] = (520, 260),
) -> str:
    """A figure: heading, drawing, and its numbers folded below.

    Args:
        finding: what the figure shows, for those who do not see it.
        lines: whether points of a series are joined.
        named: whether the names stand beside the last points, instead of in a list below.
        key: name of the figure on its page; what a visitor has unfolded there stays so.
    """
    found = [(px, py) for one in series for px, py in zip(one.x, one.y, strict=True) if _drawable(px, py, x, y)]
    if not found:
        return ""
    spread = [(py, d) for one in series for py, d in zip(one.y, one.deviations, strict=False) if d]
    ends = [end for py, d in spread for end in (py - d, py + d) if _drawable(found[0][0], end, x, y)]
    across, up = _scale([p[0] for p in found], x), _scale([*(p[1] for p in found), *ends], y)
    width, height = size
    inner_w, inner_h = width - LEFT - RIGHT, height - TOP - BOTTOM

    def place(px: float, py: float) -> tuple[float, float]:
        return LEFT + inner_w * across.share(px), TOP + inner_h * (1 - up.share(py))

    parts = [_grid(across, up, x, y, size)]
    for one in series:
        parts.append(_series(one, x, y, place, lines))
    if named:
        parts.append(_names(series, x, y, place, Box(LEFT, 0, width, height - BOTTOM)))
    legend = "" if named else _legend(series)
    return (
        f'<figure class="figure"><h3>{escape(title)}</h3>'
        f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(f"{title}. {finding}")}">'
        f"{''.join(parts)}</svg>{legend}{twin(series, x, y, title, key)}</figure>"
    )


@dataclass(frozen=True)
class Scale:
    """From numbers to shares of an axis."""

    low: float
    high: float
    logarithmic: bool
    ticks: list[float]

    def share(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.logarithmic else (self.low, self.high)
        value = math.log(value) if self.logarithmic else value
        return (value - low) / (high - low)


def _scale(values: Sequence[float], axis: Axis) -> Scale:
    low, high = min(values), max(values)
    if axis.logarithmic:
        low, high = low / 1.6, high * 1.6
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (1, 2, 5) if math.log10(high / low) < 2.2 else (1, 3) if math.log10(high / low) < 3.5 else (1,)
        ticks = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
        return Scale(low, high, True, ticks)
    if low == high:
        low, high = low - 0.5 * abs(low or 1), high + 0.5 * abs(high or 1)
    room = 0.0 if axis.whole else 0.08 * (high - low)
    low, high = low - room, high + room
    step = _nice((high - low) / 4)
    if axis.whole:
        step = max(1.0, round(step))
        low = min(low, 0.0)
    first = math.ceil(low / step)
    ticks = [step * n for n in range(first, math.floor(high / step + 1e-9) + 1)]
    return Scale(low, high, False, ticks)


def _nice(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(nice * power for nice in (1, 2, 5, 10) if step <= nice * power * 1.0001)


def _drawable(px: float, py: float, x: Axis, y: Axis) -> bool:
    return math.isfinite(px) and math.isfinite(py) and (px > 0 or not x.logarithmic) and (py > 0 or not y.logarithmic)


def _grid(across: Scale, up: Scale, x: Axis, y: Axis, size: tuple[int, int]) -> str:
    width, height = size
    bottom, right = height - BOTTOM, width - RIGHT
    parts = []
    for tick in up.ticks:
        at = TOP + (bottom - TOP) * (1 - up.share(tick))
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}" stroke="var(--line)"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{at + 3.5:.1f}" text-anchor="end">{escape(y.write(tick))}</text>')
    for tick in across.ticks:
        at = LEFT + (right - LEFT) * across.share(tick)
        parts.append(f'<text x="{at:.1f}" y="{bottom + 15}" text-anchor="middle">{escape(x.write(tick))}</text>')
    parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}" stroke="var(--edge)"/>')
    middle = (LEFT + right) / 2
    parts.append(f'<text x="{middle:.0f}" y="{height - 3}" text-anchor="middle">{escape(x.label)}</text>')
    parts.append(f'<text x="4" y="{TOP - 12}" text-anchor="start">{escape(y.label)}</text>' if y.label else "")
    return "".join(parts)


def _points(one: Series, x: Axis, y: Axis) -> list[tuple[float, float]]:
    return [(px, py) for px, py in zip(one.x, one.y, strict=True) if _drawable(px, py, x, y)]


def _colour(one: Series) -> str:
    return f"var(--method-{shade(one.method)})" if one.method else "var(--ink)"


def _series(one: Series, x: Axis, y: Axis, place: Callable, lines: bool) -> str:
    points, colour = _points(one, x, y), _colour(one)
    if not points:
        return ""
    places = [place(*point) for point in points]
    parts = []
    if lines and len(places) > 1:
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
    for (px, py), deviation in zip(points, one.deviations, strict=False):
        if deviation and _drawable(px, py - deviation, x, y):
            (a, low), (_, high) = place(px, py - deviation), place(px, py + deviation)
            parts.append(f'<line x1="{a:.1f}" x2="{a:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}"/>')
    outline = marker_outline(one.method, MARK) if one.method else ""
    shown = places if not lines or len(places) <= 24 else places[-1:]
    for a, b in shown:
        parts.append(
            f'<path d="{outline}" transform="translate({a - MARK / 2:.1f} {b - MARK / 2:.1f})" fill="{colour}" '
            'stroke="var(--card)" stroke-width="0.8"/>'
        )
    return "".join(parts)


def _names(series: Sequence[Series], x: Axis, y: Axis, place: Callable, inside: Box) -> str:
    """The name of each series beside its last point."""
    ends = [(one, place(*points[-1])) for one in series if (points := _points(one, x, y))]
    spots = beside([(one.method, *at) for one, at in ends], inside)
    return "".join(
        f'<text x="{a:.1f}" y="{b:.1f}" text-anchor="{anchor}" style="fill:{_colour(one)}">{escape(one.method)}</text>'
        for (one, _), (a, b, anchor) in zip(ends, spots, strict=True)
    )


def _legend(series: Sequence[Series]) -> str:
    entries = "".join(f"<li>{glyph(one.method)}{escape(one.method)}</li>" for one in series if one.method)
    return f'<ul class="key">{entries}</ul>'


def twin(series: Sequence[Series], x: Axis, y: Axis, title: str, key: str) -> str:
    """The figure's numbers as a table, folded."""
    rows = "".join(
        f'<tr><th scope="row">{escape(one.method)}</th><td>{escape(x.write(px))}</td>'
        f"<td>{escape(y.write(py))}</td></tr>"
        for one in series
        for px, py in zip(one.x, one.y, strict=True)
    )
    table = (
        f'<table class="data"><caption class="hidden">{escape(title)}</caption><thead><tr><th scope="col">method</th>'
        f'<th scope="col">{escape(x.label)}</th><th scope="col">{escape(y.label)}</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )
    inner = scroll(f"{title}, as a table", table)
    return f'<details data-key="{escape(key or title)}"><summary>Figures as a table</summary>{inner}</details>'
