"""Clouds as the adapted models of a comparison see them: their classes, and the spectrum of what each adapter changes.

views.json     the classes, and of every cloud its label and of every method scores and spectrum
views.npz      the clouds, float32 `[clouds, points, 3]`
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vision_peft as vp
from peft_runs.adapted import load_adapted
from peft_runs.durable import write_json
from peft_runs.families import VISION
from peft_runs.find import load_recipe
from peft_runs.order import seed_generators
from peft_runs.read import read_recipe
from peft_runs.run_folder import RunFolder
from vision_peft.data.cloud_files import read_cloud
from vision_peft.data.clouds import Clouds, PreparedClouds
from vision_peft.data.shapes.changes import normalised
from vision_peft.tasks import CloudClassification

VIEWS, POINTS = "views.json", "views.npz"
COUNT = 24  # test clouds that a comparison's page shows
PLAIN = 1024  # points of a cloud without a model
UNKNOWN = -1  # label of a stranger's cloud


@dataclass(frozen=True)
class Seen:
    """One cloud in one model.

    Attributes:
        scores: probability of every class.
        change: share of each component, from low to high frequency, in how the adapter changes the patches' features.
        size: norm of that change over the norm of the features.
    """

    scores: list[float]
    change: list[float]
    size: float


@dataclass(frozen=True)
class Some:
    """A few clouds with their labels; those of strangers have none."""

    arrays: Sequence[np.ndarray]
    labels: np.ndarray
    classes: Sequence[str]

    def cloud(self, index: int) -> np.ndarray:
        return self.arrays[index]


def view_test_clouds(out: Path) -> None:
    """Leave in the folder of a finished comparison of clouds how its models see the first ones of the test part."""

    def some(task: Any) -> Clouds:
        clouds = task.test_clouds
        count = min(COUNT, len(clouds.labels))
        return Some([clouds.cloud(index) for index in range(count)], clouds.labels[:count], clouds.classes)

    _view(out, out, some)


def view_file(given: Path, comparison: Path | None, out: Path) -> None:
    """The same of a cloud in an uploaded file; without a comparison, the cloud alone.

    Raises:
        DataError: it cannot be read.
    """
    points = normalised(read_cloud(Path(given.name), given.read_bytes))
    label = np.array([UNKNOWN])
    if comparison is None:
        _write(Some([points], label, []), _prepared(Some([points], label, []), PLAIN), {}, out)
    else:
        _view(comparison, out, lambda task: Some([points], label, task.classes))


def has_clouds(task: object) -> bool:
    """Whether a task classifies clouds by patches, which have a spectrum."""
    return isinstance(task, CloudClassification) and task.model_settings.name.startswith("point_")


def _view(comparison: Path, out: Path, choose: Callable[[Any], Clouds]) -> None:
    folders: dict[str, RunFolder] = {}
    for place in sorted(comparison.glob("*/seed-*/examined.json")):
        folders.setdefault(place.parent.parent.name, RunFolder(place.parent))
    methods: dict[str, list[dict[str, Any]]] = {}
    clouds, points, before = None, torch.empty(0), []
    for method, folder in folders.items():
        tasks = VISION.tasks()
        recipe = read_recipe(load_recipe(folder.recipe), [], tasks)
        task: Any = tasks[recipe.task](recipe.model, recipe.data, recipe.run.seed)
        if clouds is None:
            clouds = choose(task)
            points = _prepared(clouds, task.data.points)
        seed_generators(recipe.run.seed)  # a model without pretrained weights starts as it did in training
        model = task.build_model().eval()
        if not before:
            before = [vp.view_cloud(model, cloud).features for cloud in points]
        adapted = load_adapted(model, folder.adapter)
        methods[method] = [asdict(_seen(adapted, *pair)) for pair in zip(points, before, strict=True)]
    if clouds is not None:
        _write(clouds, points, methods, out)


def _prepared(clouds: Clouds, count: int) -> torch.Tensor:
    """Their farthest points, as models are judged by them."""
    prepared = PreparedClouds(clouds, count, None, 0)
    return torch.stack([prepared[0, index]["points"] for index in range(len(prepared))])


def _write(clouds: Clouds, points: torch.Tensor, methods: dict[str, Any], out: Path) -> None:
    np.savez_compressed(out / POINTS, points=points.numpy())
    labels = [int(label) for label in clouds.labels]
    write_json(out / VIEWS, {"classes": list(clouds.classes), "labels": labels, "methods": methods})


def _seen(model: Any, points: torch.Tensor, before: torch.Tensor) -> Seen:
    view = vp.view_cloud(model, points)
    change = view.features - before
    return Seen(
        scores=_short(view.logits.softmax(-1)),
        change=_short(view.spectrum.energy(change)),
        size=float(change.norm() / before.norm()),
    )


def _short(values: torch.Tensor) -> list[float]:
    return [float(f"{value:.4g}") for value in values.tolist()]
