"""`curves.png` of one run: the training loss of every step, and the metric wherever it was judged."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from peft_runs.figure_style import LIGHT
from peft_runs.selection_style import SINGLE, STRUCTURED, quiet, save, settings

SMOOTHED = 40  # the loss is averaged so that about so many points remain


def draw_run(lines: list[dict[str, Any]], metric: str, path: Path) -> None:
    """Write the PNG from the lines of `metrics.jsonl`."""
    steps = [line for line in lines if line["kind"] == "step"]
    judged = [line for line in lines if line["kind"] == "evaluation"]
    with settings():
        figure = Figure(figsize=(7.2, 2.9), layout="constrained", facecolor=LIGHT.ground)
        left, right = figure.subplots(1, 2)
        for axes in (left, right):
            quiet(axes)
            axes.grid(True, color=LIGHT.line, linewidth=0.8)
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        numbers, losses = ([line[name] for line in steps] for name in ("step", "loss"))
        left.plot(numbers, losses, color=STRUCTURED, linewidth=0.8, alpha=0.3)
        width = max(1, len(losses) // SMOOTHED)
        whole = len(losses) // width * width
        means = [np.asarray(values[:whole], float).reshape(-1, width).mean(1) for values in (numbers, losses)]
        left.plot(*means, color=STRUCTURED, linewidth=1.6)
        left.set_ylabel("training loss" + (f", thick: mean of {width} steps" if width > 1 else ""))
        right.plot([line["step"] for line in judged], [line[metric] for line in judged], "o-", color=SINGLE)
        right.set_ylabel(f"test {metric}")
        save(figure, path)
