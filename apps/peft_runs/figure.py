"""The figures of a comparison: the metric against trainable parameters (or two figures of what models draw), and the
curves of training.

Drawn once as PNG with a legend, to stand alone, and as SVG for the page, which has the legend and the colours itself.
"""

import io
import re
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from peft_runs.compare_columns import Column
from peft_runs.compare_results import Results, Row, Spread
from peft_runs.compare_words import is_share
from peft_runs.durable import whole_folder
from peft_runs.figure_labels import place_labels
from peft_runs.figure_planes import plane_of
from peft_runs.figure_samples import draw_samples
from peft_runs.figure_style import LIGHT, STAND_INS, VARIABLES, Theme, marker, shade
from peft_runs.report_samples import Samples

FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
DOTS = 200  # per inch, of the PNG
Drawing = Callable[[Results, Theme, bool, bool], Figure]


def write_figures(results: Results, folder: Path, shown: Samples | None = None) -> None:
    """PNGs by the figures' names in `folder`, and `samples.png` where there are some; all or none."""
    with whole_folder(folder) as aside, _settings():
        for name, draw in drawings(results).items():
            draw(results, LIGHT, False, True).savefig(aside / f"{name}.png", dpi=DOTS)
        if shown is not None:
            draw_samples(shown, LIGHT).savefig(aside / "samples.png", dpi=DOTS)


def drawings(results: Results) -> dict[str, Drawing]:
    """The figures by name: `kept` or `sharpness` of models that draw, otherwise the metric."""
    plane = plane_of(results)
    if plane is not None:
        return {plane.second: draw_plane, "curves": draw_curves}
    return {f"{results.metric}_parameters": draw_against_parameters, "curves": draw_curves}


def as_svg(results: Results, draw: Drawing, narrow: bool) -> str:
    """The figure as an SVG element for a page: its colours are the page's variables, its ids are its own."""
    buffer = io.StringIO()
    with _settings(f"{draw.__name__}-{narrow}"):
        draw(results, STAND_INS, narrow, False).savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", svg)
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r'\sid="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    for stand_in, variable in VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    return svg.replace("'DejaVu Sans', sans-serif", FONTS).replace("<svg", '<svg aria-hidden="true"', 1)


@contextmanager
def _settings(salt: str = ""):
    chosen: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9.5,
    }
    with matplotlib.rc_context(chosen):
        yield


def draw_against_parameters(results: Results, theme: Theme, narrow: bool, alone: bool) -> Figure:
    """The first column (mean over seeds, bars of one standard deviation) against all trainable parameters."""
    figure, axes = _plane(results, theme, narrow, alone)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    column = results.columns[0]
    counts = {row.method: Spread(row.trainable_parameters or 0, None) for row in results.finished}
    points = _points(axes, theme, counts, {row.method: row.figures[column.name] for row in results.finished})
    head = ", head included" if results.has_head else ""
    axes.set_xlabel(f"trainable parameters{head}" + ("" if narrow else " (logarithmic)"))
    axes.set_ylabel(_label(column))
    _ticks(axes.yaxis, column)
    place_labels(figure, axes, points)
    return figure


def draw_plane(results: Results, theme: Theme, narrow: bool, alone: bool) -> Figure:
    """The columns of a plane against each other, with the base model itself."""
    figure, axes = _plane(results, theme, narrow, alone)
    plane = plane_of(results)
    assert plane is not None
    names = ("frechet", plane.second)
    rows = [row for row in results.finished if all(name in row.figures for name in names)]
    x, y = ({row.method: row.figures[name] for row in rows} for name in names)
    points = _points(axes, theme, x, y)
    if results.base is not None:
        across, up = results.base["frechet"], results.base[plane.second] if plane.base is None else plane.base
        axes.plot(across, up, marker="o", markersize=8, color=theme.quiet, fillstyle="none", zorder=3)
        points.append(("base model", across, up, theme.quiet))
    axes.set_xlabel(plane.across + ("" if narrow else ", less is nearer"))
    axes.set_ylabel(plane.up[narrow])
    place_labels(figure, axes, points)
    return figure


def _plane(results: Results, theme: Theme, narrow: bool, alone: bool) -> tuple[Figure, Axes]:
    figure = _figure((3.6, 3.7) if narrow else (7.2, 4.1) if alone else (9.0, 4.4), theme)
    axes = figure.add_subplot()
    _dress(axes, theme)
    axes.margins(x=0.14, y=0.16)
    if alone:
        axes.set_title(_title(results), loc="left", fontsize=10.5, color=theme.ink, pad=12)
    return figure, axes


def _points(
    axes: Axes, theme: Theme, x: Mapping[str, Spread], y: Mapping[str, Spread]
) -> list[tuple[str, float, float, str]]:
    """A marker a method with bars of one standard deviation; name, place and colour of each."""
    points = []
    for method, across in x.items():
        colour, up = theme.shades[shade(method)], y[method]
        axes.errorbar(
            across.mean,
            up.mean,
            xerr=across.deviation,
            yerr=up.deviation,
            color=colour,
            marker=marker(method),
            markersize=8,
            markeredgecolor=theme.ground,
            markeredgewidth=0.8,
            elinewidth=1.4,
            capsize=3,
            linestyle="none",
            zorder=3,
        )
        points.append((method, across.mean, up.mean, colour))
    return points


def draw_curves(results: Results, theme: Theme, narrow: bool, alone: bool) -> Figure:
    """Left the metric wherever it was judged, right the mean training loss of every epoch; means over seeds."""
    figure = _figure((3.6, 5.6) if narrow else (7.2, 3.2) if alone else (9.0, 3.6), theme)
    left, right = figure.subplots(2, 1) if narrow else figure.subplots(1, 2)
    for axes in (left, right):
        _dress(axes, theme)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("epochs")
    for row in results.finished:
        judged = row.runs[0].curve.judged_epochs
        _curve(left, row, theme, judged, [run.curve.judged for run in row.runs])
        epochs = [float(epoch + 1) for epoch in range(len(row.runs[0].curve.losses))]
        _curve(right, row, theme, epochs, [run.curve.losses for run in row.runs])
    judged_by = Column(results.metric, results.metric, "more", is_share(results.metric), "")
    left.set_ylabel(f"test {results.metric}" + (" (%)" if judged_by.share else ""))
    _ticks(left.yaxis, judged_by)
    right.set_ylabel("training loss (logarithmic)")
    if results.finished and min(min(run.curve.losses) for row in results.finished for run in row.runs) > 0:
        right.set_yscale("log")
        right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        right.yaxis.set_minor_formatter(NullFormatter())
    if alone:
        handles, names = left.get_legend_handles_labels()
        columns = min(len(names), 5) or 1
        figure.legend(handles, names, loc="outside upper left", ncols=columns, frameon=False, labelcolor=theme.ink)
    return figure


def _curve(axes: Axes, row: Row, theme: Theme, x: list[float], seeds: list[list[float]]) -> None:
    colour, middle = theme.shades[shade(row.method)], [mean(values) for values in zip(*seeds, strict=True)]
    axes.plot(
        x, middle, color=colour, marker=marker(row.method), markersize=4.5, linewidth=1.4, label=row.method, zorder=3
    )
    if len(seeds) > 1:
        spread = [stdev(values) for values in zip(*seeds, strict=True)]
        low, high = zip(*[(m - s, m + s) for m, s in zip(middle, spread, strict=True)], strict=True)
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _figure(inches: tuple[float, float], theme: Theme) -> Figure:
    return Figure(figsize=inches, layout="constrained", facecolor=theme.ground)


def _dress(axes: Axes, theme: Theme) -> None:
    axes.set_facecolor("none")
    axes.grid(True, color=theme.line, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.quiet)
    axes.tick_params(which="both", color=theme.quiet, labelcolor=theme.quiet, left=False)
    axes.xaxis.label.set_color(theme.quiet)
    axes.yaxis.label.set_color(theme.quiet)


def _label(column: Column) -> str:
    return column.heading + (" (%)" if column.share else "")


def _ticks(axis: Axis, column: Column) -> None:
    if column.share:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))


def _title(results: Results) -> str:
    seeds = "one seed" if len(results.seeds) == 1 else f"mean ± standard deviation of {len(results.seeds)} seeds"
    return f"{results.model} on {results.data}, {seeds}"
