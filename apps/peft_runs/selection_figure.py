"""What a method chose to train, as pictures: a plan as a map of the model, and a budget as it moves between layers."""

from collections.abc import Mapping, Sequence
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LogNorm, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, MaxNLocator

from peft_kernels.budget import Plan
from peft_runs.figure_style import LIGHT, SHADES
from peft_runs.selection_grid import grid_of
from peft_runs.selection_style import SINGLE, STRUCTURED, dress_scale, percent, quiet, save, settings, shades, short

_EMPTY = "#f1f3f5"
_MOST_WORDS = 400  # cells of a map that still has its numbers written into it


def draw_plan(plan: Plan, sizes: Mapping[str, tuple[int, ...]], path: Path, title: str) -> None:
    """Write a PNG: blocks down, kinds of tensors across, coloured by the share of each tensor that is trained.

    Ranks and whole tensors (structured) and single entries (also what a sparsity leaves) have a colour each; the bar
    below shows what share of all trained numbers each of the two has.

    Args:
        plan: the choice.
        sizes: the shape of every tensor that could be chosen, by the names of the plan, in the model's order.

    Raises:
        ValueError: the plan names a tensor that `sizes` does not have.
    """
    plan.check({name: prod(shape) for name, shape in sizes.items()})
    trained = {name: cell for name, shape in sizes.items() if (cell := _cell(plan, name, shape)) is not None}
    everything = grid_of(sizes)
    used = {everything.places[name] for name in trained}
    rows, columns = {row for row, _ in used}, {column for _, column in used}
    # Norms and biases that nothing chose, and what stands outside of blocks, would only widen the map.
    shown = grid_of(
        name
        for name, (row, column) in everything.places.items()
        if (column in columns or len(sizes[name]) > 1) and (row in rows or everything.rows[row])
    )
    shares = [share for share, _, _, _ in trained.values() if share > 0]
    gated = bool(plan.sparsity) and len(trained) == len(plan.sparsity)
    wide = not gated and shares and max(shares) > 3 * min(shares)
    norm = LogNorm(min(shares), max(shares)) if wide else Normalize(0, 1)
    height, width = 0.26 * len(shown.rows), 0.52 * len(shown.columns)
    with settings():
        figure = Figure(figsize=(max(width, 3.6) + 2.2, height + 2.0), layout="constrained", facecolor=LIGHT.ground)
        axes, bar = figure.subplots(2, 1, height_ratios=(max(height, 0.8), 0.17))
        _map(axes, shown.row_labels, shown.column_labels)
        maps = {structured: shades(STRUCTURED if structured else SINGLE) for structured in (True, False)}
        words = len(shown.places) <= _MOST_WORDS
        for name, (row, column) in shown.places.items():
            share, structured, word, _ = trained.get(name, (0.0, True, "", 0))
            colour: Any = maps[structured](norm(share)) if share > 0 else _EMPTY
            _square(axes, row, column, colour, word if words else "")
        axes.set_title(title, loc="left", fontsize=10.5, color=LIGHT.ink, pad=10)
        axes.set_ylabel("block")
        ways = [kind for kind in (True, False) if any(cell[1] == kind for cell in trained.values())]
        for kind in ways:
            _scale(figure, axes, maps[kind], norm, kind, numbered=kind == ways[0])  # the first stands outermost
        whole = sum(prod(sizes[name]) for name in plan.sparsity) if gated else None
        _budget(bar, list(trained.values()), whole)
        save(figure, path)


def _cell(plan: Plan, name: str, shape: tuple[int, ...]) -> tuple[float, bool, str, int] | None:
    """Share trained, whether it is structured, the word in the cell, and how many numbers are trained."""
    size = prod(shape)
    if name in plan.sparsity:
        share = 1 - plan.sparsity[name]
        return share, False, percent(share), round(share * size)
    if name in plan.entries:
        return plan.entries[name] / size, False, percent(plan.entries[name] / size), plan.entries[name]
    if name in plan.ranks:
        cost = plan.ranks[name] * (shape[0] + size // shape[0])
        return cost / size, True, f"r {plan.ranks[name]}", cost
    return (1.0, True, "all", size) if name in plan.full or name in plan.layers else None


def draw_allocation(history: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Write a PNG of a budget that was divided again and again: a map of blocks over rounds for each kind of tensor.

    Args:
        history: what each reallocation decided: `round` and, by layer, `kept` and `sparsity`; lines of metrics.jsonl.

    Raises:
        ValueError: nothing was ever divided.
    """
    if not history:
        raise ValueError("no reallocation was recorded: there is nothing to draw")
    names = list(history[0]["sparsity"])
    grid, rounds = grid_of(names), [record["round"] for record in history]
    kept = np.full((len(grid.columns), len(grid.rows), len(history)), np.nan)
    for name, (row, column) in grid.places.items():
        kept[column, row] = [1 - record["sparsity"][name] for record in history]
    across = min(len(grid.columns), 6)
    down = ceil(len(grid.columns) / across)
    tall = min(max(0.16 * len(grid.rows), 0.9), 3.2)
    with settings():
        figure = Figure(figsize=(1.45 * across + 1.6, (tall + 0.45) * down + 2.3), layout="constrained")
        figure.set_facecolor(LIGHT.ground)
        parts: Any = figure.subfigures(2, 1, height_ratios=(1.5, (tall + 0.45) * down + 0.4))
        above, below = parts
        _shares_over_time(above.subplots(), history, grid.columns, grid.column_labels, grid.places)
        panels = np.atleast_1d(below.subplots(down, across, sharex=True, sharey=True)).ravel()
        middles = (np.array(rounds[1:]) + np.array(rounds[:-1])) / 2
        first, last = (
            (2 * rounds[0] - middles[0], 2 * rounds[-1] - middles[-1])
            if len(rounds) > 1
            else (rounds[0] - 0.5, rounds[0] + 0.5)
        )
        edges = np.array([first, *middles, last])
        cells = None
        for panel, label, values in zip(panels, grid.column_labels, kept, strict=False):
            cells = panel.pcolormesh(
                edges, np.arange(len(grid.rows) + 1) - 0.5, values, cmap=shades(SINGLE), vmin=0, vmax=1
            )
            panel.set_title(label, fontsize=9.5, color=LIGHT.ink)
            panel.set_ylim(len(grid.rows) - 0.5, -0.5)
            panel.xaxis.set_major_locator(_whole(rounds, 4))
            quiet(panel)
        for panel in panels[len(grid.columns) :]:
            panel.set_visible(False)
        panels[0].yaxis.set_major_locator(MaxNLocator(8, integer=True))
        panels[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: _label(grid.row_labels, value)))
        below.supylabel("block", fontsize=9.5, color=LIGHT.quiet)
        below.supxlabel("round", fontsize=9.5, color=LIGHT.quiet)
        scale = below.colorbar(cells, ax=list(panels), shrink=0.9, aspect=24, pad=0.02)
        dress_scale(scale, "entries kept in the layer", percent)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, color=LIGHT.ink)
        save(figure, path)


def _shares_over_time(
    axes: Axes, history: Sequence[Mapping[str, Any]], columns: list[str], labels: list[str], places: Mapping[str, Any]
) -> None:
    totals = np.array(
        [
            [sum(n for name, n in record["kept"].items() if places[name][1] == column) for record in history]
            for column in range(len(columns))
        ]
    )
    colours = [SHADES[column % len(SHADES)][0] for column in range(len(columns))]
    x = [record["round"] for record in history]
    if len(x) == 1:
        x, totals = [x[0] - 0.5, x[0] + 0.5], np.repeat(totals, 2, 1)
    axes.stackplot(x, totals, colors=colours, labels=labels, alpha=0.85, linewidth=0.6, edgecolor=LIGHT.ground)
    axes.set_xlim(x[0], x[-1])
    axes.xaxis.set_major_locator(_whole([record["round"] for record in history], 8))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.set_ylabel("entries kept")
    quiet(axes)
    axes.legend(
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        ncols=ceil(len(columns) / 6),
        frameon=False,
        labelcolor=LIGHT.ink,
        reverse=True,
        handlelength=1.0,
        columnspacing=1.0,
        fontsize=8.5 if len(columns) <= 6 else 7,
    )


def _map(axes: Axes, rows: list[str], columns: list[str]) -> None:
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), rows)
    slanted = max(map(len, columns), default=0) > 6
    axes.set_xticks(range(len(columns)), columns, rotation=40 if slanted else 0, ha="right" if slanted else "center")
    axes.tick_params(length=0)
    quiet(axes)


def _square(axes: Axes, row: int, column: int, colour: Any, word: str) -> None:
    axes.add_patch(Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, facecolor=colour, edgecolor="none"))
    if word:
        red, green, blue, *_ = to_rgb(colour)
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.6
        ink = LIGHT.ground if dark else LIGHT.ink
        axes.text(column, row, word, ha="center", va="center", fontsize=6.5, color=ink)


def _scale(figure: Figure, axes: Axes, colours: Colormap, norm: Normalize, structured: bool, numbered: bool) -> None:
    scale = figure.colorbar(ScalarMappable(norm, colours), ax=axes, aspect=26, pad=0.05, fraction=0.05)
    dress_scale(scale, "share of the tensor" if numbered else "", lambda v: percent(v) if numbered else "")
    scale.ax.set_title("ranks,\nwhole" if structured else "single\nentries", fontsize=7.5, color=LIGHT.quiet, pad=5)


def _budget(axes: Axes, trained: Sequence[tuple[float, bool, str, int]], whole: int | None) -> None:
    """One bar: what each way has of all trained numbers; of gates, what they leave of the `whole`."""
    numbers = [sum(cell[3] for cell in trained if cell[1] == kind) for kind in (True, False)]
    total, start = whole or sum(numbers) or 1, 0
    axes.barh(0, total, color=_EMPTY, height=1.0)
    for number, colour in zip(numbers, (STRUCTURED, SINGLE), strict=True):
        axes.barh(0, number, left=start, color=colour, height=1.0, edgecolor=LIGHT.ground, linewidth=0.8)
        start += number
    shares = [
        f"{name} {number:,} ({percent(number / total)})"
        for name, number in zip(("structured", "single entries"), numbers, strict=True)
        if number
    ]
    said = f"{start:,} trained numbers\n{', '.join(shares)}"
    if whole is not None:
        said = f"{start:,} of {whole:,} entries change ({percent(start / total)})"
    axes.set_xlim(0, total)
    axes.set_yticks([])
    axes.set_xticks([])
    axes.set_xlabel(said, x=0.0, ha="left")
    quiet(axes)


def _whole(rounds: Sequence[int], most: int) -> Locator:
    return MaxNLocator(most, integer=True) if len(rounds) > 1 else FixedLocator(rounds)


def _label(labels: list[str], place: float) -> str:
    return labels[int(place)] if 0 <= place < len(labels) and place == int(place) else ""
