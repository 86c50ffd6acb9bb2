"""Part segmentation of point clouds: every point gets the number of its part, in the manner of ShapeNetPart."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from peft_kernels.data_errors import UnknownNameError, unknown
from vision_peft.data.clouds import CloudVariation
from vision_peft.data.part_sets import PARTS, PreparedParts, ShapeNetPart
from vision_peft.models.point_checkpoints import load_point_checkpoint
from vision_peft.models.point_parts import HEAD, PointParts
from vision_peft.tasks.cloud_pictures import parts_sheet
from vision_peft.tasks.part_metrics import cloud_ious, predicted_parts

SHOWN = 6


@dataclass(frozen=True)
class PartModelSpec:
    """The segmenter that is adapted.

    Attributes:
        name: `point_mae_parts`.
        weights: a public checkpoint as safetensors; null starts from nothing.
        num_groups: patches of a cloud.
        group_size: points of a patch.
        embed_dim: width.
        depth: blocks.
        num_heads: attention heads.
        levels: the blocks whose features are read.
        drop_path_rate: stochastic depth of the last block.
    """

    name: str = "point_mae_parts"
    weights: str | None = None
    num_groups: int = 128
    group_size: int = 32
    embed_dim: int = 384
    depth: int = 12
    num_heads: int = 6
    levels: tuple[int, ...] = (3, 7, 11)
    drop_path_rate: float = 0.1


@dataclass(frozen=True)
class PartDataSpec:
    """The clouds.

    Attributes:
        name: `shapenetpart`.
        root: its folder, `shapenetcore_partanno_segmentation_benchmark_v0_normal`.
        train_split: the part to train on.
        test_split: the part to test on.
        points: of each cloud, drawn with replacement.
        variation: how training clouds vary.
    """

    name: str = "shapenetpart"
    root: str | None = None
    train_split: str = "trainval"
    test_split: str = "test"
    points: int = 2048
    variation: CloudVariation = field(default_factory=lambda: CloudVariation(scale=0.25, shift=0.1, isotropic=True))


class PartSegmentation:
    """Points into parts, by cross-entropy; judged by the mean IoU over clouds (instances) and over categories."""

    model_spec: ClassVar[type] = PartModelSpec
    data_spec: ClassVar[type] = PartDataSpec
    metric: ClassVar[str] = "instance_miou"

    def __init__(
        self,
        model: PartModelSpec,
        data: PartDataSpec,
        seed: int,
        told: Callable[[str, int, int], None] | None = None,
    ):
        if data.name != "shapenetpart":
            raise unknown("clouds with parts", data.name, ["shapenetpart"])
        if data.root is None:
            raise UnknownNameError("shapenetpart is read from a folder, but none is given: add --data.root FOLDER")
        self.model_settings, self.data, self.seed = model, data, seed
        root = Path(data.root).expanduser()
        self.train_clouds, self.test_clouds = (ShapeNetPart(root, part) for part in (data.train_split, data.test_split))
        self.classes, self.ranges = list(PARTS), list(PARTS.values())

    def build_model(self) -> nn.Module:
        """The segmenter.

        Raises:
            UnknownNameError: there is no such model; the nearest is told.
            DataError: its checkpoint cannot be read or does not fit.
        """
        spec, known = vars(self.model_settings).copy(), timm.list_models("point_*_parts")
        name, weights = spec.pop("name"), spec.pop("weights")
        if name not in known:
            raise unknown("model of parts", name, known)
        model = timm.create_model(name, num_classes=self.ranges[-1].stop, **spec)
        if weights is not None:
            assert isinstance(model, PointParts)
            load_point_checkpoint(model, weights)
        return model

    def training_data(self, model: nn.Module) -> PreparedParts:
        """The training clouds, varied."""
        return PreparedParts(self.train_clouds, self.data.points, self.data.variation, self.seed)

    def test_data(self, model: nn.Module) -> PreparedParts:
        """The test clouds, never varied."""
        return PreparedParts(self.test_clouds, self.data.points, None, self.seed)

    def loss(self, model: Callable[..., Tensor], batch: dict[str, Tensor]) -> Tensor:
        """Mean cross-entropy of a batch's points over all parts of all categories, float32 `[]`."""
        logits = model(batch["points"], batch["label"]).float()
        return F.cross_entropy(logits.flatten(0, 1), batch["parts"].flatten())

    def evaluate(self, model: Callable[..., Tensor], batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Sums over the batches, to be added up over processes: IoUs and clouds by category, `loss`; float64."""
        iou, count = (torch.zeros(len(self.classes), dtype=torch.float64) for _ in range(2))
        loss = torch.zeros((), dtype=torch.float64)
        for batch in batches:
            logits, categories = model(batch["points"], batch["label"]).float(), batch["label"]
            loss += F.cross_entropy(logits.mT, batch["parts"], reduction="none").mean(-1).double().sum().cpu()
            predicted = predicted_parts(logits, categories, self.ranges)
            ious = cloud_ious(predicted, batch["parts"], categories, self.ranges).cpu()
            iou.index_add_(0, categories.cpu(), ious)
            count += torch.bincount(categories.cpu(), minlength=len(count))
        named = {f"iou_{name}": one for name, one in zip(self.classes, iou, strict=True)}
        return {**named, **{f"count_{name}": one for name, one in zip(self.classes, count, strict=True)}, "loss": loss}

    def figures(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Instance and class mIoU and the mean loss from the sums of `evaluate`; categories without clouds are left."""
        ious = {c: (sums[f"iou_{c}"].item(), sums[f"count_{c}"].item()) for c in self.classes}
        present = {c: (iou, count) for c, (iou, count) in ious.items() if count}
        count = sum(count for _, count in present.values())
        return {
            "instance_miou": sum(iou for iou, _ in present.values()) / count,
            "class_miou": sum(iou / count for iou, count in present.values()) / len(present),
            "loss": sums["loss"].item() / count,
        }

    @torch.no_grad()
    def draw(self, model: Callable[..., Tensor]) -> Image.Image:
        """The first test clouds with their parts, and as the model labels them."""
        data = self.test_data(model)  # type: ignore[arg-type]
        rows = []
        for index in range(min(SHOWN, len(data))):
            sample = data[0, index]
            category = sample["label"][None]
            told = predicted_parts(model(sample["points"][None], category).float(), category, self.ranges)[0]
            rows.append((self.classes[int(category)], sample["points"], sample["parts"], told))
        return parts_sheet(rows)

    def head(self, model: nn.Module) -> list[str]:
        """Names of the modules that label points, for counting parameters with and without them."""
        return list(HEAD)
