"""Test pictures for the report, each with what every method sees in it."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from peft_runs.compare_results import Results

HARDEST, FIRST = 12, 4
LARGEST = 96  # pixels of a side


class Labelled(Protocol):
    """Pictures with class indices."""

    @property
    def labels(self) -> Any: ...

    def picture(self, index: int) -> Image.Image: ...


@runtime_checkable
class ShowsPictures(Protocol):
    """A task that has pictures to show."""

    train_pictures: Labelled
    test_pictures: Labelled
    classes: Sequence[str]


@runtime_checkable
class Counts(Protocol):
    """A task that knows how many pictures its parts have before it has read them."""

    def sizes(self) -> tuple[int, int]: ...


def part_sizes(task: object) -> tuple[int, int] | None:
    """Pictures to train on and to test on, where the task tells."""
    if isinstance(task, ShowsPictures):
        return len(task.train_pictures.labels), len(task.test_pictures.labels)
    return task.sizes() if isinstance(task, Counts) else None


@dataclass(frozen=True)
class Shown:
    """One test picture: its position, a `data:` address, its class, and the methods' answers (right or not)."""

    index: int
    source: str
    label: str
    answers: list[tuple[str, bool]]


@dataclass(frozen=True)
class Pictures:
    """What the report shows.

    Attributes:
        methods: the order of every picture's answers.
        all_right: how many test pictures every method reads correctly.
        hardest: how many of those shown were chosen because most methods misread them; the others are the first ones.
    """

    methods: list[str]
    shown: list[Shown]
    hardest: int
    all_right: int
    samples: int


def choose(results: Results, task: object) -> Pictures | None:
    """The test pictures that most methods misread, and the first ones; by the predictions of the first seed."""
    rows = [row for row in results.finished if row.runs[0].predictions is not None]
    if not rows or not isinstance(task, ShowsPictures):
        return None
    labels = np.asarray(task.test_pictures.labels)
    predictions = np.array([row.runs[0].predictions for row in rows])
    misread = (predictions != labels).sum(0)
    order = np.argsort(-misread, kind="stable")
    hardest = [int(index) for index in order[:HARDEST] if misread[index] > 0]
    first = [index for index in range(len(labels)) if index not in hardest][:FIRST]
    shown = []
    for index in [*hardest, *first]:
        answers = [(str(task.classes[int(answer)]), bool(answer == labels[index])) for answer in predictions[:, index]]
        source = as_address(task.test_pictures.picture(index))
        shown.append(Shown(index, source, str(task.classes[int(labels[index])]), answers))
    return Pictures([row.method for row in rows], shown, len(hardest), int((misread == 0).sum()), len(labels))


def as_address(picture: Image.Image, largest: int = LARGEST) -> str:
    """The picture, made smaller if it is large, as the `data:` address of a PNG."""
    small = picture.copy()
    small.thumbnail((largest, largest))
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
