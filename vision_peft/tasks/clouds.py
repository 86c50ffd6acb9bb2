"""Classification of point clouds."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import timm
import torch
from torch import Tensor, nn

from peft_kernels.data_errors import unknown
from peft_kernels.draws import draw_seed
from vision_peft.data import DataError
from vision_peft.data.clouds import CloudVariation, PreparedClouds, open_clouds
from vision_peft.models.point_checkpoints import load_point_checkpoint
from vision_peft.models.point_model import PointModel
from vision_peft.models.point_pixels import point_to_pixel
from vision_peft.tasks.by_class import ByClass
from vision_peft.tasks.classification import share

_PAINTED = "p2p_"


@dataclass(frozen=True)
class CloudModelSpec:
    """The point transformer that is adapted.

    Attributes:
        name: `point_mae`, `point_bert`, `point_gpt_l` or another model of points in timm's registry, or `p2p_` and the
            name of one of pictures (`p2p_vit_mini`), for which clouds are painted.
        weights: a public checkpoint as safetensors; null starts from nothing, or from what `pretrained` names.
        pretrained: start from weights that come with the package.
        num_groups: patches of a cloud; null is the architecture's own number. So is null `group_size`.
        group_size: points of a patch.
        drop_path_rate: stochastic depth of the last block.
    """

    name: str = "point_mae"
    weights: str | None = None
    pretrained: bool = False
    num_groups: int | None = None
    group_size: int | None = None
    drop_path_rate: float | None = None


@dataclass(frozen=True)
class CloudDataSpec:
    """The clouds.

    Attributes:
        name: `scans` (generated), `surfaces` (generated), `instances` (generated views of the clouds at `root`),
            `modelnet40`, `scanobjectnn/pb_t50_rs`, or `folder`.
        root: folder or zip of the data.
        train_split: the part to train on.
        test_split: the part to test on.
        train_size: clouds of a generated training part.
        test_size: clouds of a generated test part.
        points: of each cloud.
        seed: of generated clouds.
        label_smoothing: share of a target that is spread over all classes.
        votes: test on so many copies of a cloud, all but the first varied, whose logits are averaged; no best of
            several rounds is chosen.
        variation: how training clouds vary, and the copies that vote.
    """

    name: str = "scans"
    root: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    train_size: int | None = None
    test_size: int | None = None
    points: int = 1024
    seed: int = 0
    label_smoothing: float = 0.0
    votes: int = 1
    variation: CloudVariation = field(default_factory=CloudVariation)

    def __post_init__(self) -> None:
        share("data.label_smoothing", self.label_smoothing)
        if self.votes < 1:
            raise ValueError(f"data.votes must be at least 1, found {self.votes!r}")


class CloudTask:
    """The training and the test part of a set of clouds, as samples."""

    data: CloudDataSpec

    def __init__(
        self,
        model: Any,
        data: CloudDataSpec,
        seed: int,
        told: Callable[[str, int, int], None] | None = None,
    ):
        self.model_settings, self.data, self.seed, self.told = model, data, seed, told
        self.train_clouds = self.opened(data.train_split, data.train_size)
        self.test_clouds = self.opened(data.test_split, data.test_size, self.test_classes())

    def opened(self, split: str, size: int | None, classes: list[str] | None = None) -> Any:
        """One part of the data."""
        root = None if self.data.root is None else Path(self.data.root).expanduser()
        return open_clouds(
            self.data.name, root, split, classes, points=self.data.points, size=size, seed=self.data.seed
        )

    def test_classes(self) -> list[str] | None:
        """The classes that the test part must have, where they matter."""
        return None

    def training_data(self, model: nn.Module) -> PreparedClouds:
        """The training clouds, varied."""
        return self.prepared(self.train_clouds, self.data.variation, "training")

    def test_data(self, model: nn.Module) -> PreparedClouds:
        """The test clouds, never varied."""
        return self.prepared(self.test_clouds, None, "test")

    def prepared(self, clouds: Any, variation: CloudVariation | None, what: str) -> PreparedClouds:
        """Clouds as samples."""
        told = None if self.told is None else partial(self.told, f"read the {what} clouds")
        return PreparedClouds(clouds, self.data.points, variation, self.seed, told)


class CloudClassification(CloudTask, ByClass):
    """Clouds into classes, by cross-entropy; judged by top-1 accuracy on the test part."""

    model_spec: ClassVar[type] = CloudModelSpec
    data_spec: ClassVar[type] = CloudDataSpec
    input_name: ClassVar[str] = "points"

    def __init__(
        self,
        model: CloudModelSpec,
        data: CloudDataSpec,
        seed: int,
        told: Callable[[str, int, int], None] | None = None,
    ):
        super().__init__(model, data, seed, told)
        self.classes = list(self.train_clouds.classes)
        if list(self.test_clouds.classes) != self.classes:
            raise DataError(f"{data.name}: the classes of the test part are not those of the training part")

    def test_classes(self) -> list[str]:
        return list(self.train_clouds.classes)

    def build_model(self) -> nn.Module:
        """The point transformer with a head for this data's classes.

        Raises:
            UnknownNameError: there is no such model of points; the nearest is told.
            DataError: its checkpoint cannot be read or does not fit.
        """
        spec, known = self.model_settings, timm.list_models("point_*")
        if spec.name.startswith(_PAINTED) and timm.is_model(spec.name.removeprefix(_PAINTED)):
            return point_to_pixel(spec.name.removeprefix(_PAINTED), len(self.classes), spec.pretrained)
        if spec.name not in known:
            raise unknown("model of points", spec.name, known)
        given = {name: getattr(spec, name) for name in ("num_groups", "group_size", "drop_path_rate")}
        own = {name: value for name, value in given.items() if value is not None}
        model = timm.create_model(spec.name, pretrained=spec.pretrained, num_classes=len(self.classes), **own)
        if spec.weights is not None:
            assert isinstance(model, PointModel)
            load_point_checkpoint(model, spec.weights)
        return model

    def plain_training_data(self, model: nn.Module) -> PreparedClouds:
        """The training clouds, not varied: what methods look at before they train."""
        return self.prepared(self.train_clouds, None, "training")

    def evaluate(self, model: Callable[[Tensor], Tensor], batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Sums over the batches, as `ByClass` has them, of what the copies of each cloud vote for."""
        numbered = iter(range(1 << 62))

        def voted(points: Tensor) -> Tensor:
            rng = np.random.default_rng(draw_seed(self.seed, 0, next(numbered)))
            logits = model(points)
            for _ in range(self.data.votes - 1):
                varied = np.stack([self.data.variation(cloud, rng) for cloud in points.cpu().double().numpy()])
                logits = logits + model(torch.from_numpy(varied).to(points))
            return logits / self.data.votes

        return super().evaluate(model if self.data.votes == 1 else voted, batches)
