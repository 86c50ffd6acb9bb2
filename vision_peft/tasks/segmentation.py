"""Semantic segmentation with a timm model: every pixel gets a class."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import timm
import torch
from PIL import Image
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import make_grid

import vision_peft.models  # noqa: F401 (registers them)
from peft_kernels.data_errors import DataError, UnknownNameError, unknown
from peft_kernels.draws import draw_seed
from vision_peft.data import open_split
from vision_peft.data.few_shot import FewShot
from vision_peft.data.masks import IGNORED, Collages, Masked, MaskFolder, PreparedMasks, Scenes
from vision_peft.models.segmenter import Segmenter
from vision_peft.tasks.picture_size import created, fixed_size

SHOWN = 8


def at_least(name: str, value: int, least: int) -> None:
    """Raise a ValueError where a number is too small."""
    if value < least:
        raise ValueError(f"{name} must be at least {least}, found {value!r}")


@dataclass(frozen=True)
class SegmenterSpec:
    """The segmenter that is adapted.

    Attributes:
        name: a model of timm's registry that gives maps (`features_only`), a pyramid such as `piip_mini` too.
        pretrained: start from its pretrained weights.
        img_size: side of the pictures; by default the model's own, or the data's where it takes any.
        maps: which of its maps are read, by their numbers; null reads all.
        width: of what the head reads.
    """

    name: str = "vit_mini"
    pretrained: bool = True
    img_size: int | None = None
    maps: tuple[int, ...] | None = None
    width: int = 64

    def __post_init__(self) -> None:
        at_least("model.width", self.width, 4)
        if self.maps is not None:
            at_least("the number of model.maps", len(self.maps), 1)


@dataclass(frozen=True)
class MaskDataSpec:
    """The pictures.

    Attributes:
        name: `scenes` (drawn shapes), `collages` (photographs of class folders at `root`, laid over each other), or
            `folder` (`classes.txt`, `<split>/images` and `<split>/masks` at `root`).
        root: folder, of collages also zip, of the data.
        train_split: the part to train on.
        test_split: the part to test on.
        train_count: scenes or collages an epoch, each epoch its own.
        test_count: scenes or collages to test on, always the same.
        side: of the pictures.
        train_size: of collages' photographs, those of `trainval`, which is cut out of the part `pool`.
        val_size: of these, those of `val`; null cuts nothing. What is left is the part `rest`.
        pool: the part that is cut.
        split_seed: chooses the photographs, and draws what is tested on.
    """

    name: Literal["scenes", "collages", "folder"] = "scenes"
    root: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    train_count: int = 800
    test_count: int = 400
    side: int = 64
    train_size: int | None = None
    val_size: int | None = None
    pool: str = "train"
    split_seed: int = 0

    def __post_init__(self) -> None:
        for name in ("train_count", "test_count", "side"):
            at_least(f"data.{name}", getattr(self, name), 1)


class Segmentation:
    """Pixels into classes, by cross-entropy; judged by the mean IoU of the classes over all test pictures."""

    model_spec: ClassVar[type] = SegmenterSpec
    data_spec: ClassVar[type] = MaskDataSpec
    metric: ClassVar[str] = "mean_iou"

    def __init__(
        self,
        model: SegmenterSpec,
        data: MaskDataSpec,
        seed: int,
        told: Callable[[str, int, int], None] | None = None,
    ):
        self.model_settings, self.data, self.seed = model, data, seed
        self.train_source = self._open(data.train_split, data.train_count)
        self.test_source = self._open(data.test_split, data.test_count)
        self.classes = self.train_source.classes

    def _open(self, split: str, count: int) -> Masked:
        data = self.data
        if data.name == "scenes":
            return Scenes(count, data.side)
        if data.root is None:
            raise UnknownNameError(f"{data.name} are read from files, but none are given: add --data.root FOLDER")
        root = Path(data.root).expanduser()
        if data.name == "folder":
            return MaskFolder(root, split)
        cut = None if data.val_size is None else FewShot(data.pool, data.train_size, data.val_size, data.split_seed)
        return Collages(open_split("folder", root, split, few_shot=cut), count, data.side)

    def build_model(self) -> nn.Module:
        """The segmenter, its head new.

        Raises:
            UnknownNameError: timm has no such model; the nearest is told.
            DataError: it cannot be made for pictures of that size, has no such maps, or its weights cannot be had.
        """
        spec = self.model_settings
        if not timm.is_model(spec.name):
            raise unknown("model", spec.name, timm.list_models())
        given = {} if spec.maps is None else {"out_indices": spec.maps}
        try:
            body = created(spec.name, spec.img_size, pretrained=spec.pretrained, features_only=True, **given)
        except AssertionError as error:  # timm's way to say it
            raise DataError(f"{spec.name} has no maps {list(spec.maps or ())} (model.maps): {error}") from error
        return Segmenter(body, len(self.classes), spec.width)

    def training_data(self, model: nn.Module) -> PreparedMasks:
        """The training pictures, drawn anew and mirrored."""
        return self._prepared(self.train_source, model, self.seed, varied=True)

    def test_data(self, model: nn.Module) -> PreparedMasks:
        """The test pictures, always the same ones."""
        return self._prepared(self.test_source, model, draw_seed(self.data.split_seed, 1), varied=False)

    def _prepared(self, source: Masked, model: nn.Module, seed: int, varied: bool) -> PreparedMasks:
        settings = resolve_model_data_config(model)
        spec = self.model_settings
        side = spec.img_size or self.data.side
        size = settings["input_size"][-2:] if spec.img_size is None and fixed_size(spec.name) else (side, side)
        return PreparedMasks(source, self.data.side, size, (settings["mean"], settings["std"]), seed, varied)

    def loss(self, model: Callable[..., Tensor], batch: dict[str, Tensor]) -> Tensor:
        """Mean cross-entropy of a batch's pixels that count, float32 `[]`; 0 where none does."""
        true = batch["classes"]
        total = F.cross_entropy(_logits(model, batch), true, reduction="sum", ignore_index=IGNORED)
        return total / (true != IGNORED).sum().clamp_min(1)

    def evaluate(self, model: Callable[..., Tensor], batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Sums over the batches, to be added up over processes: pixels of each class that are `both` and `either` what
        was told and what is true; `right`, `pixels` and `loss`; float64 `[]`."""
        count = len(self.classes)
        table = torch.zeros(count, count, dtype=torch.float64)
        loss = torch.zeros((), dtype=torch.float64)
        for batch in batches:
            logits, true = _logits(model, batch), batch["classes"]
            loss += F.cross_entropy(logits, true, reduction="sum", ignore_index=IGNORED).double().cpu()
            counted = true != IGNORED
            pairs = true[counted] * count + logits.argmax(1)[counted]
            table += torch.bincount(pairs, minlength=count**2).view(count, count).cpu()
        both, either = table.diag(), table.sum(0) + table.sum(1) - table.diag()
        sums = {f"both_{c}": both[i] for i, c in enumerate(self.classes)}
        sums |= {f"either_{c}": either[i] for i, c in enumerate(self.classes)}
        return {**sums, "right": both.sum(), "pixels": table.sum(), "loss": loss}

    def figures(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Mean IoU, share of pixels that are right, mean loss; a class that is neither told nor there is left.

        Raises:
            DataError: no pixel counts.
        """
        if not sums["pixels"]:
            raise DataError(f"no pixel of the pictures to test on counts: all are {IGNORED} in their masks")
        ious = [(sums[f"both_{c}"] / sums[f"either_{c}"]).item() for c in self.classes if sums[f"either_{c}"] > 0]
        pixels = sums["pixels"].item()
        return {
            "mean_iou": sum(ious) / len(ious),
            "pixel_accuracy": sums["right"].item() / pixels,
            "loss": sums["loss"].item() / pixels,
        }

    @torch.no_grad()
    def draw(self, model: Callable[..., Tensor]) -> Image.Image:
        """The first test pictures, under each its classes and what the model says."""
        data = self.test_data(model)  # type: ignore[arg-type]
        batch = torch.utils.data.default_collate([data[0, index] for index in range(min(SHOWN, len(data)))])
        shown = F.interpolate(batch["image"], (self.data.side, self.data.side))
        mean, std = (torch.tensor(value).view(-1, 1, 1) for value in data.normal)
        hues = torch.rand(IGNORED + 1, 3, generator=torch.Generator().manual_seed(1))
        told = _logits(model, batch).argmax(1)
        rows = [shown * std + mean, *(hues[classes].movedim(-1, 1) for classes in (batch["classes"], told))]
        return to_pil_image(make_grid(torch.cat(rows).clamp(0, 1), nrow=len(told), padding=4, pad_value=1))

    def sizes(self) -> tuple[int, int]:
        """Pictures to train on and to test on."""
        return len(self.train_source), len(self.test_source)

    def about(self) -> dict[str, str]:
        """What was learned from, in words."""
        train, test = self.sizes()
        return {"Pictures": f"{train:,} of {self.data.name}, {self.data.side} pixels; {test:,} judge"}

    def prompts(self) -> list[str]:
        """The rows of the picture that `draw` gives."""
        return ["the picture", "its classes", "what the model says"]

    def usage(self, method: str | None) -> str:
        """Python that makes the run's segmenter again from its `adapter` folder, named FOLDER."""
        spec = self.model_settings
        words = [repr(spec.name), f"pretrained={spec.pretrained and method is not None}", "features_only=True"]
        words += [] if spec.img_size is None else [f"img_size={spec.img_size}"]
        words += [] if spec.maps is None else [f"out_indices={tuple(spec.maps)}"]
        loaded = (
            'model = vp.load_adapter(model, "FOLDER").eval()\n'
            if method
            else 'model.load_state_dict(load_file("FOLDER/model.safetensors"))\n'
        )
        return (
            "import timm\n"
            + ("" if method else "from safetensors.torch import load_file\n")
            + "\nimport vision_peft as vp\n\n"
            f"maps = timm.create_model({', '.join(words)})\n"
            f"model = vp.models.Segmenter(maps, num_classes={len(self.classes)}, width={spec.width})\n{loaded}"
        )

    def head(self, model: nn.Module) -> list[str]:
        """Names of the modules that any adaptation trains anew."""
        known: Any = model
        return list(known.pretrained_cfg["classifier"])


def _logits(model: Callable[..., Tensor], batch: dict[str, Tensor]) -> Tensor:
    logits = model(batch["image"]).float()
    size = batch["classes"].shape[-2:]
    return logits if logits.shape[-2:] == size else F.interpolate(logits, size, mode="bilinear")
