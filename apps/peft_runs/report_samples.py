"""What adapted models draw for the same prompts from the same seeds, side by side with the base model."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from peft_runs.compare_results import Results
from peft_runs.compare_samples import BASE, read_measured, read_pictures

SHOWN = 8  # prompts of each kind


@dataclass(frozen=True)
class Samples:
    """Pictures of a few prompts, which are not chosen: from first to last in equal steps.

    Attributes:
        prompts: the columns.
        own: how many of them, the first, are captions of the data.
        rows: name and pictures; None where there is none (the data have no pictures for other prompts).
    """

    prompts: list[str]
    own: int
    rows: list[tuple[str, list[Image.Image | None]]]


def samples(results: Results, out: Path) -> Samples | None:
    """The data's pictures, the base model's and every method's, of the first seed; None where models draw nothing."""
    base = read_measured(out / BASE)
    rows = [row for row in results.finished if read_measured(out / row.runs[0].place)]
    if base is None or not rows:
        return None
    places = {kind: spread(len(prompts)) for kind, prompts in base["prompts"].items()}
    prompts = [base["prompts"][kind][place] for kind, chosen in places.items() for place in chosen]
    drawn = read_pictures(out / BASE)
    real: list[Image.Image | None] = [picture(drawn["real"][place]) for place in places["own"]]
    found = [("data", [*real, *[None] * len(places["unrelated"])])]
    for name, folder in (("base model", BASE), *((row.method, row.runs[0].place) for row in rows)):
        drawn = read_pictures(out / folder)
        found.append((name, [picture(drawn[kind][place]) for kind, chosen in places.items() for place in chosen]))
    return Samples(prompts, len(places["own"]), found)


def spread(count: int) -> list[int]:
    """At most `SHOWN` places among `count`, in equal steps."""
    return np.linspace(0, count - 1, min(SHOWN, count)).round().astype(int).tolist()


def picture(pixels: Tensor) -> Image.Image:
    """A picture from uint8 `[3, S, S]`."""
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
