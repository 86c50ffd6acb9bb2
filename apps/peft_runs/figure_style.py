"""One colour and one marker for every method, the same in all figures, tables and pages.

They go by the method's place in the table of methods, so that colour never carries the meaning alone. Each colour has
a shade for light and one for dark ground; both reach a contrast of 4.5 : 1 there.
"""

from dataclasses import dataclass
from functools import cache

from matplotlib.markers import MarkerStyle
from matplotlib.path import Path as Outline
from matplotlib.transforms import Affine2D

from peft_kernels.registry import methods

SHADES = (  # on light, on dark ground
    ("#2563a8", "#6aa7e8"),
    ("#b3540e", "#f0a15e"),
    ("#2b7a47", "#6cc28b"),
    ("#b83a3a", "#f08c8c"),
    ("#6d48b3", "#b69cf0"),
    ("#0d7680", "#4fc3cd"),
    ("#ab3d79", "#ea8cc0"),
    ("#7a5a35", "#c9a377"),
    ("#69650c", "#cbc24a"),
    ("#55606e", "#a9b4c2"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h", "<", ">")


@dataclass(frozen=True)
class Theme:
    """Colours of a figure: `ink` of text, `quiet` of axes, `line` of the grid, `ground`, and those of the methods."""

    ink: str
    quiet: str
    line: str
    ground: str
    shades: tuple[str, ...]


LIGHT = Theme("#1d2126", "#5b636d", "#e3e5e8", "#ffffff", tuple(light for light, _ in SHADES))
# For SVG inside a page: each stand-in becomes the page's own variable, so that one drawing serves light and dark.
STAND_INS = Theme(
    "#000001", "#000002", "#000003", "#000004", tuple(f"#0001{place:02x}" for place in range(len(SHADES)))
)
VARIABLES = {
    STAND_INS.ink: "var(--ink)",
    STAND_INS.quiet: "var(--quiet)",
    STAND_INS.line: "var(--line)",
    STAND_INS.ground: "var(--card)",
    **{stand_in: f"var(--method-{place})" for place, stand_in in enumerate(STAND_INS.shades)},
}


@cache
def place(method: str) -> int:
    """The method's place in the table of methods."""
    return list(methods()).index(method)


def shade(method: str) -> int:
    """Position of the method's colour in `SHADES`."""
    return place(method) % len(SHADES)


def marker(method: str) -> str:
    """The method's marker, as matplotlib names it."""
    return MARKERS[place(method) % len(MARKERS)]


def marker_outline(method: str, size: float = 10.0) -> str:
    """The marker as the `d` of an SVG path, centred in a square of `size`."""
    style = MarkerStyle(marker(method))
    outline = style.get_path().transformed(style.get_transform())
    largest = abs(outline.get_extents().get_points()).max()
    scale = 0.42 * size / largest
    outline = outline.transformed(Affine2D().scale(scale, -scale).translate(size / 2, size / 2))
    words = {Outline.MOVETO: "M", Outline.LINETO: "L", Outline.CURVE3: "Q", Outline.CURVE4: "C", Outline.CLOSEPOLY: "Z"}
    parts = []
    for points, code in outline.iter_segments():
        numbers = "" if code == Outline.CLOSEPOLY else " ".join(f"{value:.2f}" for value in points)
        parts.append(words[int(code)] + numbers)  # type: ignore[index]
    return " ".join(parts)
