"""A search for text layers as a picture: every measure of every layer, in the order in which the layers run."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure

from diffusion_peft.localization import Localization
from peft_runs.figure_style import LIGHT
from peft_runs.selection_style import SINGLE, STRUCTURED, quiet, save, settings, shades

MOST_WORDS = 32  # layers whose numbers are still written into the map


def measures(report: Localization) -> list[str]:
    """The measures that are shown: the score first; precision and recall are in their F1."""
    names = [name for name in report.of(report.indices[0]) if "precision" not in name and "recall" not in name]
    return sorted(names, key=lambda name: name != report.score)


def draw_layers(report: Localization, path: Path, title: str) -> None:
    """Write a PNG: bars of the score, the best set in another colour, above a map of all measures."""
    names, layers = measures(report), report.indices
    values = np.array([[report.of(index)[name] for index in layers] for name in names])
    best = report.best_set()
    width = max(5.5, 0.34 * len(layers) + 2.4)
    with settings():
        figure = Figure(figsize=(width, 2.4 + 0.3 * len(names)), layout="constrained", facecolor=LIGHT.ground)
        bars, cells = figure.subplots(2, 1, height_ratios=(1.7, 0.3 * len(names)), sharex=True)
        colours = [SINGLE if index in best else STRUCTURED for index in layers]
        places = np.arange(len(layers))
        bars.bar(places, values[0], color=colours, width=0.8)
        bars.axhline(report.of()[report.score], color=LIGHT.quiet, linewidth=0.8, linestyle=(0, (4, 3)))
        bars.set_ylabel(report.score)
        bars.set_title(
            f"{title}: layers that read another text, one at a time", loc="left", fontsize=10.5, color=LIGHT.ink
        )
        low, high = values.min(1, keepdims=True), values.max(1, keepdims=True)
        shares = (values - low) / np.where(high > low, high - low, 1)
        cells.imshow(shares, cmap=shades(STRUCTURED), vmin=0, vmax=1, aspect="auto")
        if len(layers) <= MOST_WORDS:
            _numbers(cells, values, shares)
        cells.set_yticks(range(len(names)), names)
        step = max(1, len(layers) // 36)
        cells.set_xticks(places[::step], [str(index) for index in layers[::step]])
        cells.set_xlabel("layer, in the order of execution")
        for axes in (bars, cells):
            quiet(axes)
        cells.tick_params(length=0)
        scale = figure.colorbar(ScalarMappable(Normalize(0, 1), shades(STRUCTURED)), ax=cells, ticks=[0, 1], aspect=12)
        scale.ax.set_yticklabels(["least", "most"])
        scale.ax.tick_params(labelsize=8, color=LIGHT.quiet, labelcolor=LIGHT.quiet, length=2)
        scale.outline.set_visible(False)  # type: ignore[operator]
        save(figure, path)


def _numbers(axes: Any, values: np.ndarray, shares: np.ndarray) -> None:
    for (row, column), value in np.ndenumerate(values):
        colour: Any = shades(STRUCTURED)(float(shares[row, column]))
        red, green, blue = to_rgb(colour)
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.6
        ink = LIGHT.ground if dark else LIGHT.ink
        axes.text(column, row, number(value), ha="center", va="center", fontsize=6.5, color=ink)


def number(value: float) -> str:
    """`0.31`, `12`, `1.2e+03`."""
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.3g}"
