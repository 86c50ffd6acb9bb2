"""What adapted models draw for the same prompts from the same seeds, side by side with the base model."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from peft_runs.compare_results import Results
from peft_runs.compare_samples import BASE, read_measured, read_pictures

SHOWN = 16  # prompts in all, as many of each kind


@dataclass(frozen=True)
class Samples:
    """Pictures of a few prompts, which are not chosen: from first to last in equal steps.

    Attributes:
        prompts: the columns.
        own: how many of them, the first, are captions of the data.
        wanted: what the first row shows, the `data` or a `teacher`.
        rows: name and pictures; None where there is none (the data have no pictures for other prompts).
    """

    prompts: list[str]
    own: int
    wanted: str
    rows: list[tuple[str, list[Image.Image | None]]]


def samples(results: Results, out: Path) -> Samples | None:
    """What is wanted, and what the base model and every method draw, of the first seed; None where they draw none."""
    base = read_measured(out / BASE)
    rows = [row for row in results.finished if read_measured(out / row.runs[0].place)]
    if base is None or not rows:
        return None
    each = SHOWN // len(base["prompts"])
    places = {kind: spread(len(prompts), each) for kind, prompts in base["prompts"].items()}
    prompts = [base["prompts"][kind][place] for kind, chosen in places.items() for place in chosen]
    drawn = read_pictures(out / BASE)
    real: list[Image.Image | None] = [picture(drawn["real"][place]) for place in places["own"]]
    found = [(base["wanted"], [*real, *[None] * (len(prompts) - len(real))])]
    for name, folder in (("base model", BASE), *((row.method, row.runs[0].place) for row in rows)):
        drawn = read_pictures(out / folder)
        found.append((name, [picture(drawn[kind][place]) for kind, chosen in places.items() for place in chosen]))
    return Samples(prompts, len(places["own"]), base["wanted"], found)


def spread(count: int, most: int) -> list[int]:
    """At most `most` places among `count`, in equal steps."""
    return np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()


def picture(pixels: Tensor) -> Image.Image:
    """A picture from uint8 `[3, S, S]`."""
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
