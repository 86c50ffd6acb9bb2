"""FDConv or an image pyramid as the backbone of torchvision's Faster R-CNN or FCN, on drawn shapes.

python examples/dense/shapes.py [--task segmentation] [--backbone pyramid] [--steps 300] [--width 64]

Trains on scenes of discs, squares and triangles, each step on new ones, and measures in 200 more: average precision at
half overlap, mean of the kinds, or the mean IoU of kinds and ground. "fdconv" is a narrow FDConv-ResNet-18 from random
weights, "pyramid" the embedded `piip_mini`.
"""

import argparse
from typing import Any

import timm
import torch
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.segmentation import FCN
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.ops import box_iou

import vision_peft as vp
from vision_peft.data.scenes import KINDS, Scene, scene

SIDE, UNSEEN = 64, 10**6


def backbone(name: str, task: Any, width: int) -> Any:
    """A timm model that gives a pyramid of maps, with torchvision's adapter around it."""
    if name == "pyramid":
        model: Any = timm.create_model("piip_mini", pretrained=True, features_only=True, out_indices=(1, 2, 3))
    else:
        narrow: Any = {"channels": (32, 48, 64, 96), "out_indices": (1, 2, 3, 4)} if name == "fdconv" else {}
        model = timm.create_model("fdconv_resnet18" if name == "fdconv" else name, features_only=True, **narrow)
    return vp.torchvision_backbone(model, width, task)


def detector(name: str, width: int) -> Any:
    """Faster R-CNN for scenes, which it takes as they are."""
    body = backbone(name, "detection", width)
    levels = len(body.body.feature_info.channels()) + 1
    anchors = AnchorGenerator(tuple((size,) for size in (10, 14, 18, 24, 32)[:levels]), ((1.0,),) * levels)
    size: Any = {"min_size": SIDE, "max_size": SIDE, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    size |= {"rpn_post_nms_top_n_train": 100, "rpn_post_nms_top_n_test": 50, "box_batch_size_per_image": 64}
    return FasterRCNN(body, len(KINDS) + 1, rpn_anchor_generator=anchors, **size)


def segmenter(name: str, width: int) -> Any:
    """FCN for scenes."""
    return FCN(backbone(name, "segmentation", width), FCNHead(width, len(KINDS) + 1))


def loss_of(model: Any, scenes: list[Scene]) -> torch.Tensor:
    """The sum of the model's own losses of these scenes."""
    pictures = torch.stack([each.picture for each in scenes])
    if isinstance(model, FasterRCNN):
        parts = model(list(pictures), [{"boxes": each.boxes, "labels": each.labels} for each in scenes])
        return torch.stack(list(parts.values())).sum()
    classes = torch.stack([each.classes for each in scenes])
    weight = torch.tensor([0.2, 1.0, 1.0, 1.0])  # most of a scene is ground
    return torch.nn.functional.cross_entropy(model((pictures - 0.5) / 0.25)["out"], classes, weight)


def average_precision(model: Any, scenes: list[Scene], overlap: float = 0.5) -> float:
    """Area under precision by recall, mean of the kinds; a box is right where it overlaps one not yet found."""
    seen, values = [model([each.picture])[0] for each in scenes], []
    for kind in range(1, len(KINDS) + 1):
        scores, hits, count = [], [], 0
        for each, boxes in zip(scenes, seen, strict=True):
            true, own = each.boxes[each.labels == kind], boxes["labels"] == kind
            count += len(true)
            left = torch.ones(len(true))
            for score, row in zip(boxes["scores"][own], box_iou(boxes["boxes"][own], true), strict=True):
                best, place = (row * left).max(0) if len(true) else (torch.zeros(()), 0)
                scores.append(float(score))
                hits.append(float(best > overlap))
                if best > overlap:
                    left[place] = 0
        right = torch.tensor(hits)[torch.tensor(scores).argsort(descending=True)]
        precision = right.cumsum(0) / torch.arange(1, len(right) + 1)
        values.append(float((precision.flip(0).cummax(0).values.flip(0) * right).sum()) / count)
    return sum(values) / len(values)


def mean_iou(model: Any, scenes: list[Scene]) -> float:
    """Mean over kinds and ground of the pixels that are told and true by those that are either."""
    count = len(KINDS) + 1
    table = torch.zeros(count, count)
    for each in scenes:
        told = model((each.picture[None] - 0.5) / 0.25)["out"].argmax(1)[0]
        table += torch.bincount((each.classes * count + told).flatten(), minlength=count**2).view(count, count)
    return float((table.diag() / (table.sum(0) + table.sum(1) - table.diag())).mean())


def train(model: Any, steps: int, batch: int = 8, rate: float = 2e-3) -> list[float]:
    """Loss of each step."""
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 10, (steps - step) / (steps / 2))
        loss = loss_of(model.train(), [scene(step * batch + index, SIDE) for index in range(batch)])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("detection", "segmentation"), default="detection")
    parser.add_argument("--backbone", default="fdconv", help="fdconv, pyramid, or a timm model with features_only")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--width", type=int, default=64)
    settings = parser.parse_args()
    if settings.backbone not in ("fdconv", "pyramid") and not timm.is_model(settings.backbone):
        parser.error(f"timm has no model {settings.backbone!r}")
    if settings.steps < 1 or settings.width < 4:
        parser.error("--steps must be at least 1 and --width at least 4")
    torch.manual_seed(0)
    make = detector if settings.task == "detection" else segmenter
    model = make(settings.backbone, settings.width)
    losses = train(model, settings.steps)
    judge = average_precision if settings.task == "detection" else mean_iou
    with torch.no_grad():
        value = judge(model.eval(), [scene(UNSEEN + index, SIDE) for index in range(200)])
    print(f"loss {losses[0]:.3f} -> {sum(losses[-10:]) / len(losses[-10:]):.3f}")
    print(f"{judge.__name__.replace('_', ' ')} {value:.3f} in 200 new scenes")


if __name__ == "__main__":
    main()
