"""The figure of what compared models draw: a row a model, a column a prompt."""

from textwrap import fill

import numpy as np
from matplotlib.figure import Figure

from peft_runs.figure_style import Theme
from peft_runs.report_samples import Samples

CELL, LEFT, TOP, GAP = 0.62, 1.0, 0.62, 0.14  # inches; the gap stands between captions of the data and other prompts


def draw_samples(samples: Samples, theme: Theme) -> Figure:
    """All pictures of `samples`, with the prompts above and the models' names at the left."""
    columns, rows = len(samples.prompts), len(samples.rows)
    width, height = LEFT + GAP + columns * CELL, TOP + rows * CELL
    figure = Figure(figsize=(width, height), facecolor=theme.ground)
    edges = [LEFT + CELL * column + (GAP if column >= samples.own else 0) for column in range(columns)]
    for edge, prompt in zip(edges, samples.prompts, strict=True):
        text = fill(prompt, 14, max_lines=4, placeholder=" …")
        place = ((edge + CELL / 2) / width, 1 - (TOP - 0.05) / height)
        figure.text(*place, text, fontsize=5, color=theme.quiet, ha="center", va="bottom", linespacing=1.1)
    for number, (name, pictures) in enumerate(samples.rows):
        bottom = height - TOP - (number + 1) * CELL
        middle = (bottom + CELL / 2) / height
        figure.text((LEFT - 0.08) / width, middle, name, fontsize=8, color=theme.ink, ha="right", va="center")
        for edge, picture in zip(edges, pictures, strict=True):
            if picture is not None:
                box = ((edge + 0.01) / width, (bottom + 0.01) / height, (CELL - 0.02) / width, (CELL - 0.02) / height)
                axes = figure.add_axes(box)
                axes.set_axis_off()
                axes.imshow(np.asarray(picture), interpolation="nearest")
    return figure
