"""Classification of point clouds."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from peft_kernels.data_errors import unknown
from peft_kernels.draws import draw_seed
from vision_peft.data import DataError
from vision_peft.data.clouds import Clouds, PreparedClouds
from vision_peft.models.point_checkpoints import load_point_checkpoint
from vision_peft.models.point_model import PointModel
from vision_peft.models.point_pixels import point_to_pixel
from vision_peft.tasks.by_class import ByClass
from vision_peft.tasks.cloud_pictures import cloud_picture, page, sheet, shown_cloud
from vision_peft.tasks.cloud_task import CloudDataSpec, CloudModelSpec, CloudTask

_PAINTED, PAGE = "p2p_", "clouds.html"
_SHOWN = 6


class CloudPictures:
    """Clouds as pictures, for reports."""

    def __init__(self, clouds: Clouds) -> None:
        self.clouds, self.labels = clouds, clouds.labels

    def picture(self, index: int) -> Image.Image:
        """The cloud at ``index``."""
        return cloud_picture(self.clouds.cloud(index))


class CloudClassification(CloudTask, ByClass):
    """Clouds into classes, by cross-entropy; judged by top-1 accuracy on the test part."""

    model_spec: ClassVar[type] = CloudModelSpec
    data_spec: ClassVar[type] = CloudDataSpec
    input_name: ClassVar[str] = "points"
    folder: Path | None = None

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
        model = timm.create_model(
            spec.name, pretrained=spec.pretrained, num_classes=len(self.classes), **self.own_settings()
        )
        if spec.weights is not None:
            assert isinstance(model, PointModel)
            load_point_checkpoint(model, spec.weights)
        return model

    def plain_training_data(self, model: nn.Module) -> PreparedClouds:
        """The training clouds, not varied: what methods look at before they train."""
        return self.prepared(self.train_clouds, None, "training")

    @property
    def train_pictures(self) -> CloudPictures:
        """The training clouds, drawn."""
        return CloudPictures(self.train_clouds)

    @property
    def test_pictures(self) -> CloudPictures:
        """The test clouds, drawn."""
        return CloudPictures(self.test_clouds)

    def use_folder(self, folder: Path) -> None:
        """Where the page of turning clouds goes."""
        self.folder = folder

    def examples(self) -> list[int]:
        """The first test clouds of some classes."""
        firsts = {int(label): index for index, label in reversed(list(enumerate(self.test_clouds.labels)))}
        return [firsts[label] for label in sorted(firsts)][:: -(-len(firsts) // _SHOWN)]

    def prompts(self) -> tuple[str, ...]:
        """The classes of the clouds that `draw` shows."""
        return tuple(self.classes[self.test_clouds.labels[index]] for index in self.examples())

    def draw(self, model: nn.Module) -> Image.Image | None:
        """Some test clouds with what the model takes them for, their spectra and that of its features.

        With plotly installed, `clouds.html` in the run's folder shows them too, to be turned.
        """
        if self.model_settings.name.startswith(_PAINTED):
            return None  # its tokens are patches of a picture
        data, like = self.test_data(model), next(model.parameters())
        clouds = [data[0, index]["points"].to(like.device) for index in self.examples()]
        shown = [
            shown_cloud(model, cloud, name, self.classes) for cloud, name in zip(clouds, self.prompts(), strict=True)
        ]
        html = page(shown, f"{self.model_settings.name} on {self.data.name}") if self.folder is not None else None
        if html is not None and self.folder is not None:
            (self.folder / PAGE).write_text(html, encoding="utf-8")
        return sheet(shown)

    def usage(self, method: str | None) -> str:
        """Python that puts the run's `adapter` folder, named FOLDER, on the model."""
        spec, count = self.model_settings, len(self.classes)
        words = ["pretrained=True"] if spec.pretrained else []
        words += [f"{name}={value}" for name, value in self.own_settings().items()]
        loaded = f'vp.load_point_checkpoint(model, "{spec.weights}")\n' if spec.weights else ""
        return (
            "import timm\nimport torch\n\nimport vision_peft as vp\n\n"
            f"model = timm.create_model({', '.join([repr(spec.name), *words])}, num_classes={count})\n{loaded}"
            'model = vp.load_adapter(model, "FOLDER").eval()\n'
            f"logits = model(torch.rand(1, {self.data.points}, 3))  # clouds [B, N, 3], the second axis vertical\n"
        )

    def own_settings(self) -> dict[str, Any]:
        """What of the model is not its architecture's own."""
        given = {name: getattr(self.model_settings, name) for name in ("num_groups", "group_size", "drop_path_rate")}
        return {name: value for name, value in given.items() if value is not None}

    def about(self) -> dict[str, str]:
        """What was learned from, in words."""
        train, test = len(self.train_clouds.labels), len(self.test_clouds.labels)
        return {"Clouds": f"{train:,} of {self.data.name}, {self.data.points:,} points; {test:,} judge"}

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
