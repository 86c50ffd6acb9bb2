"""How pictures of a choice look: quiet axes, one colour from pale to full, shares in words."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from peft_runs.figure_style import LIGHT, SHADES

DOTS = 200  # per inch
STRUCTURED, SINGLE = SHADES[0][0], SHADES[1][0]


def dress_scale(scale: Any, label: str, words: Callable[[float], str]) -> None:
    """A colour bar without a frame."""
    scale.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: words(value)))
    scale.ax.yaxis.set_minor_formatter(NullFormatter())
    scale.outline.set_visible(False)
    scale.ax.tick_params(which="both", color=LIGHT.quiet, labelcolor=LIGHT.quiet, labelsize=8, length=2)
    scale.set_label(label, color=LIGHT.quiet, fontsize=8.5)


def quiet(axes: Axes) -> None:
    """Axes without frame, labels in the quiet colour."""
    axes.set_facecolor("none")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(color=LIGHT.line, labelcolor=LIGHT.quiet, labelsize=8)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(LIGHT.quiet)
        label.set_fontsize(9)


def shades(colour: str) -> LinearSegmentedColormap:
    """From nearly the ground to the colour."""
    return LinearSegmentedColormap.from_list(colour, ["#f4f1ec" if colour == SINGLE else "#e8eff8", colour])


def percent(share: float) -> str:
    """`12%`, `1.5%`, `0.021%`."""
    value = 100 * share
    return f"{value:.0f}%" if value >= 9.95 else f"{value:.1f}%" if value >= 0.095 else f"{value:.2g}%"


def short(value: float) -> str:
    """`20 M`."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g} {letter}"
    return f"{value:g}"


def save(figure: Figure, path: Path) -> None:
    """Write the PNG, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DOTS)


@contextmanager
def settings() -> Iterator[None]:
    """The font of all figures."""
    with matplotlib.rc_context({"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9.5}):
        yield
