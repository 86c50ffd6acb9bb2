"""Names beside points, placed so that they cover neither points nor one another."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

# Where a name may stand, the best place first: offset in points and alignment.
PLACES = (
    ((9, 0), "left", "center"),
    ((0, 9), "center", "bottom"),
    ((0, -9), "center", "top"),
    ((-9, 0), "right", "center"),
    ((7, 7), "left", "bottom"),
    ((7, -7), "left", "top"),
    ((-7, 7), "right", "bottom"),
    ((-7, -7), "right", "top"),
    ((9, 14), "left", "bottom"),
    ((9, -14), "left", "top"),
    ((-9, 14), "right", "bottom"),
    ((-9, -14), "right", "top"),
)
HALF_POINT = 6.0  # half the side of the square kept free around a point, in points


def place_labels(figure: Figure, axes: Axes, points: Sequence[tuple[str, float, float, str]]) -> list[Annotation]:
    """Write each `(name, x, y, colour)` at the first of `PLACES` that covers the least."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    half = HALF_POINT * figure.dpi / 72
    centres = [axes.transData.transform((x, y)) for _, x, y, _ in points]
    taken = [Bbox.from_extents(cx - half, cy - half, cx + half, cy + half) for cx, cy in centres]
    inside = axes.get_window_extent(renderer)
    labels: list[Annotation] = []
    for name, x, y, colour in points:
        tried: list[tuple[float, int, Annotation, Bbox]] = []
        for order, (offset, horizontal, vertical) in enumerate(PLACES):
            label = axes.annotate(
                name, (x, y), offset, textcoords="offset points", ha=horizontal, va=vertical, color=colour
            )
            box = label.get_window_extent(renderer)
            tried.append((_covered(box, taken) + _outside(box, inside), order, label, box))
            label.remove()
        _, order, _, box = min(tried, key=lambda entry: entry[:2])
        offset, horizontal, vertical = PLACES[order]
        labels.append(
            axes.annotate(name, (x, y), offset, textcoords="offset points", ha=horizontal, va=vertical, color=colour)
        )
        taken.append(box)
    return labels


def _covered(box: Bbox, others: Sequence[Bbox]) -> float:
    shared = [Bbox.intersection(box, other) for other in others]
    return sum(part.width * part.height for part in shared if part is not None)


def _outside(box: Bbox, inside: Bbox) -> float:
    part = Bbox.intersection(box, inside)
    return box.width * box.height - (0 if part is None else part.width * part.height)
