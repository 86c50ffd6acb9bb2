"""The curves of a training: the metric and the loss over epochs, one line a method."""

from collections.abc import Mapping, Sequence
from statistics import mean

from peft_compare.parts.chart import Axis, Series, chart
from peft_runs.compare_words import is_share

SIZE = (360, 220)
Points = tuple[Sequence[float], Sequence[float]]


def curves(metric: str, judged: Mapping[str, Sequence[Points]], losses: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Both figures side by side.

    Args:
        judged: method → for each seed epochs done and the metric there.
        losses: method → for each seed the mean loss of every epoch.
    """
    share = is_share(metric)
    epochs = Axis("epochs", lambda value: f"{value:g}", whole=True)
    left = Axis(metric, lambda value: f"{100 * value:.4g} %" if share else f"{value:.4g}")
    right = Axis("loss", lambda value: f"{value:.3g}", logarithmic=True)
    reached = [Series(name, *_middle(seeds)) for name, seeds in judged.items() if any(x for x, _ in seeds)]
    falling = []
    for name, seeds in losses.items():
        values = [mean(column) for column in zip(*[seed for seed in seeds if seed], strict=False)]
        if values:
            falling.append(Series(name, [float(epoch + 1) for epoch in range(len(values))], values))
    drawn = [
        chart(f"Test {metric} over epochs", _ends(reached, left), reached, epochs, left, key="judged", size=SIZE),
        chart("Training loss over epochs", _ends(falling, right), falling, epochs, right, key="losses", size=SIZE),
    ]
    return f'<div class="side-by-side">{"".join(drawn)}</div>' if any(drawn) else ""


def _middle(seeds: Sequence[Points]) -> Points:
    reached = [seed for seed in seeds if seed[0]]
    count = min(len(x) for x, _ in reached)
    return reached[0][0][:count], [mean(y[place] for _, y in reached) for place in range(count)]


def _ends(series: Sequence[Series], axis: Axis) -> str:
    said = [f"{one.method} {axis.write(one.y[0])} to {axis.write(one.y[-1])}" for one in series]
    return "; ".join(said)
