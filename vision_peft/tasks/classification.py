"""Image classification with a timm model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import timm
from timm.data import resolve_model_data_config
from torch import nn

import vision_peft.models  # noqa: F401 (registers them)
from peft_kernels.data_errors import unknown
from vision_peft.data import DataError, open_split
from vision_peft.data.benchmarks import BENCHMARKS, Benchmark
from vision_peft.data.few_shot import FewShot
from vision_peft.data.pictures import Decoded, Pictures, Prepared
from vision_peft.data.transforms import Variation, evaluation_transform, training_transform
from vision_peft.tasks.by_class import ByClass
from vision_peft.tasks.picture_size import created


def share(name: str, value: float) -> None:
    """Raise a ValueError where a share is none."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), found {value!r}")


@dataclass(frozen=True)
class ModelSpec:
    """The model that is adapted.

    Attributes:
        name: a model of timm's registry, also `vit_mini`, which comes with this package, or `hf-hub:owner/name`.
        pretrained: start from its pretrained weights.
        fresh_head: start the classifier anew even where the pretrained one has as many classes as the data.
        img_size: side of the pictures; by default the model's own.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth.
    """

    name: str = "vit_mini"
    pretrained: bool = True
    fresh_head: bool = False
    img_size: int | None = None
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        for name in ("drop_rate", "drop_path_rate"):
            share(f"model.{name}", getattr(self, name))


@dataclass(frozen=True)
class DataSpec:
    """The pictures.

    Attributes:
        name: `digits` (embedded), `folder` (at `root`), a task such as `vtab/cifar` or `fgvc/cub` (lists at `root`), or
            a name of timm's dataset factory such as `torch/cifar10`.
        root: folder or zip of the data.
        train_split: the part to train on.
        test_split: the part to test on.
        train_size: train on this many pictures only, in the classes' shares.
        val_size: few-shot protocol: the part `pool` is cut into `trainval` (`train_size` pictures), which is `train`
            and `val` (this many) together, and `rest`; these are then names for `train_split` and `test_split`.
        pool: the part that is cut; `.` is a folder that holds the class folders themselves.
        split_seed: chooses the pictures of both.
        label_smoothing: share of a target that is spread over all classes.
        crop_mode: how pictures come to the model's size: `center` resizes the short side and crops, `squash` ignores
            the sides' ratio; null is the model's own way. So are null `crop_pct`, `mean` and `std`.
        crop_pct: share of the resized side that is cropped.
        mean: of the three channels, for normalisation.
        std: deviation of the three channels.
        cache: decode pictures once and keep them in memory, up to 1 GiB a part.
        variation: how training pictures vary.
    """

    name: str = "digits"
    root: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    train_size: int | None = None
    val_size: int | None = None
    pool: str = "train"
    split_seed: int = 0
    label_smoothing: float = 0.0
    crop_mode: Literal["center", "squash"] | None = None
    crop_pct: float | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    cache: bool = True
    variation: Variation = field(default_factory=Variation)

    def __post_init__(self) -> None:
        share("data.label_smoothing", self.label_smoothing)
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise ValueError(f"data.crop_pct must be in (0, 1], found {self.crop_pct!r}")
        if self.val_size is not None and self.val_size < 1:
            raise ValueError(f"data.val_size must be at least 1 or null, found {self.val_size!r}")


class Classification(ByClass):
    """Pictures into classes, by cross-entropy; judged by top-1 accuracy on the test part."""

    model_spec: ClassVar[type] = ModelSpec
    data_spec: ClassVar[type] = DataSpec
    input_name: ClassVar[str] = "image"
    benchmarks: ClassVar[Mapping[str, Benchmark]] = BENCHMARKS

    def __init__(
        self, model: ModelSpec, data: DataSpec, seed: int, told: Callable[[str, int, int], None] | None = None
    ):
        self.model_settings = model
        self.data = data
        self.seed = seed
        self.told = told
        root = None if data.root is None else Path(data.root).expanduser()
        cut = None if data.val_size is None else FewShot(data.pool, data.train_size, data.val_size, data.split_seed)
        size = data.train_size if cut is None else None
        self.train_pictures = open_split(data.name, root, data.train_split, None, size, data.split_seed, cut)
        classes = list(self.train_pictures.classes)
        self.test_pictures = open_split(data.name, root, data.test_split, classes, few_shot=cut)
        found = len(self.test_pictures.classes)
        if found != len(classes):
            raise DataError(f"{data.name}: the test part has {found} classes, the training part {len(classes)}")
        self.classes = classes

    def build_model(self) -> nn.Module:
        """The timm model with a head for this data's classes (a fresh one unless the pretrained head fits).

        Raises:
            UnknownNameError: timm has no such model; the nearest is told.
            DataError: its pretrained weights cannot be had.
        """
        spec = self.model_settings
        if not spec.name.startswith(("hf-hub:", "local-dir:")) and not timm.is_model(spec.name):
            raise unknown("model", spec.name, timm.list_models())
        return created(
            spec.name,
            spec.img_size,
            pretrained=spec.pretrained,
            num_classes=len(self.classes),
            # timm drops a pretrained classifier of another number of classes.
            pretrained_cfg_overlay={"num_classes": 0} if spec.fresh_head else None,
            drop_rate=spec.drop_rate,
            drop_path_rate=spec.drop_path_rate,
        )

    def training_data(self, model: nn.Module) -> Prepared:
        """The training pictures as this model takes them, varied."""
        settings = self._settings(model)
        pictures = self._kept(self.train_pictures, "training")
        return Prepared(pictures, training_transform(settings, self.data.variation), self.seed)

    def plain_training_data(self, model: nn.Module) -> Prepared:
        """The training pictures as this model takes them, not varied: what methods look at before they train."""
        return Prepared(self.train_pictures, evaluation_transform(self._settings(model)), self.seed)

    def test_data(self, model: nn.Module) -> Prepared:
        """The test pictures as this model takes them, never varied."""
        settings = self._settings(model)
        pictures = self._kept(self.test_pictures, "test")
        return Prepared(pictures, evaluation_transform(settings), self.seed)

    def _settings(self, model: nn.Module) -> dict[str, Any]:
        """How this model takes pictures, with the recipe's changes."""
        given = {name: getattr(self.data, name) for name in ("crop_mode", "crop_pct", "mean", "std")}
        side = self.model_settings.img_size
        given["input_size"] = None if side is None else (3, side, side)
        return resolve_model_data_config(model) | {name: value for name, value in given.items() if value is not None}

    def _kept(self, pictures: Pictures, what: str) -> Pictures:
        if not self.data.cache:
            return pictures
        told = None if self.told is None else partial(self.told, f"decode the {what} pictures")
        return Decoded(pictures, told)
