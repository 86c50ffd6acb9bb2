"""FDConv or an image pyramid as the backbone of torchvision's Faster R-CNN or FCN, on drawn shapes.

python examples/dense/shapes.py [--task segmentation] [--backbone pyramid] [--steps 300] [--width 64]

Trains from random weights on scenes of discs, squares and triangles and says what it finds in new ones.
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
        small = {"embed_dim": 64, "depth": 3, "num_heads": 2}
        branches = [("vit_tiny_patch16_224", size, small) for size in (SIDE // 2, SIDE)]
        model: Any = vp.pyramid(branches, n_interactions=3, deform_num_heads=4, features_only=True)
    else:
        model = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4))
    return vp.torchvision_backbone(model, width, task)


def detector(name: str, width: int) -> Any:
    """Faster R-CNN for scenes, which it takes as they are."""
    anchors = AnchorGenerator(((8,), (12,), (16,), (24,), (32,)), ((1.0,),) * 5)
    size: Any = {"min_size": SIDE, "max_size": SIDE, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    return FasterRCNN(backbone(name, "detection", width), len(KINDS) + 1, rpn_anchor_generator=anchors, **size)


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


def found(model: Any, scenes: list[Scene]) -> float:
    """Share of the shapes found at half overlap with their kind, or of their pixels that are classified right."""
    right = whole = 0
    for each in scenes:
        if isinstance(model, FasterRCNN):
            (seen,) = model([each.picture])
            kept = seen["scores"] > 0.3
            same = seen["labels"][kept] == each.labels[:, None]
            right += int(((box_iou(each.boxes, seen["boxes"][kept]) > 0.5) & same).any(1).sum())
            whole += len(each.labels)
        else:
            on = each.classes > 0
            given = model((each.picture[None] - 0.5) / 0.25)["out"].argmax(1)[0]
            right, whole = right + int((given == each.classes)[on].sum()), whole + int(on.sum())
    return right / whole


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
    parser.add_argument("--backbone", default="fdconv_resnet18", help='a timm model with features_only, or "pyramid"')
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--width", type=int, default=64)
    settings = parser.parse_args()
    torch.manual_seed(0)
    make = detector if settings.task == "detection" else segmenter
    model = make(settings.backbone, settings.width)
    losses = train(model, settings.steps)
    with torch.no_grad():
        share = found(model.eval(), [scene(UNSEEN + index, SIDE) for index in range(50)])
    print(f"loss {losses[0]:.3f} -> {sum(losses[-10:]) / len(losses[-10:]):.3f}")
    what = "shapes found" if settings.task == "detection" else "pixels on shapes right"
    print(f"{share:.1%} of the {what} in 50 new scenes")


if __name__ == "__main__":
    main()
