"""What tasks on point clouds share: which model, which clouds, and their two parts as samples."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from vision_peft.data.clouds import CloudVariation, PreparedClouds, open_clouds
from vision_peft.tasks.classification import share


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
