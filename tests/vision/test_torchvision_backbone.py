"""timm models as backbones of torchvision's detectors and segmenters, on scenes that the project draws."""

from typing import Any

import pytest
import timm
import torch
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.segmentation import FCN
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.ops import masks_to_boxes

import vision_peft as vp
from tests.vision.test_fdconv_models import small
from tests.vision.tiny_pyramids import tiny
from vision_peft.data.scenes import scene

BACKBONES = {
    "resnet": lambda: small("fdconv_resnet50", features_only=True, out_indices=(1, 2, 3, 4)),
    "swin": lambda: small("fdconv_swin_tiny", features_only=True),
    "pyramid": lambda: tiny(features_only=True),
}


def pictures(count: int = 2) -> torch.Tensor:
    return torch.stack([scene(seed).picture for seed in range(count)])


@pytest.mark.parametrize("name", BACKBONES)
def test_levels_have_names_and_one_width(name):
    backbone: Any = vp.torchvision_backbone(BACKBONES[name](), 32)
    levels = backbone(pictures())
    sides = [64 // reduction for reduction in backbone.body.feature_info.reduction()]
    assert list(levels) == [*map(str, range(len(sides))), "pool"]
    assert [tuple(each.shape) for each in levels.values()] == [(2, 32, n, n) for n in (*sides, (sides[-1] + 1) // 2)]
    out = vp.torchvision_backbone(backbone.body, 16, "segmentation")(pictures())
    assert {key: tuple(each.shape) for key, each in out.items()} == {"out": (2, 16, sides[0], sides[0])}


@pytest.mark.parametrize("name", ["resnet", "pyramid"])
def test_a_detector_learns_and_reaches_every_parameter(name):
    torch.manual_seed(0)
    anchors = AnchorGenerator(((8,), (12,), (16,), (24,), (32,)), ((1.0,),) * 5)
    backbone = vp.torchvision_backbone(BACKBONES[name](), 32)
    few = {"rpn_pre_nms_top_n_train": 100, "rpn_post_nms_top_n_train": 50, "box_batch_size_per_image": 64}
    sizes: Any = {"min_size": 64, "max_size": 64, "box_detections_per_img": 10, **few}
    model = FasterRCNN(backbone, 4, rpn_anchor_generator=anchors, **sizes).train()
    scenes = [scene(seed) for seed in range(2)]
    targets = [{"boxes": each.boxes, "labels": each.labels} for each in scenes]
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-3), []
    for _ in range(6):
        loss = torch.stack(list(model([each.picture for each in scenes], targets).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert not [key for key, parameter in backbone.named_parameters() if parameter.grad is None]
    found = model.eval()([scenes[0].picture])[0]
    assert found["boxes"].shape == (len(found["scores"]), 4)


@pytest.mark.parametrize("name", ["resnet", "pyramid"])
def test_a_segmenter_learns(name):
    torch.manual_seed(0)
    model = FCN(vp.torchvision_backbone(BACKBONES[name](), 32, "segmentation"), FCNHead(32, 4)).train()
    x, classes = pictures(), torch.stack([scene(seed).classes for seed in range(2)])
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for _ in range(16):
        logits = model(x)["out"]
        loss = torch.nn.functional.cross_entropy(logits, classes, torch.tensor([0.2, 1, 1, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert logits.shape == (2, 4, 64, 64)
    assert losses[-1] < 0.5 * losses[0]
    on = classes > 0
    assert (logits.argmax(1) == classes)[on].float().mean() > 0.8 > (classes[on] == 2).float().mean() + 0.2  # the most


def test_what_gives_no_maps_is_refused():
    with pytest.raises(ValueError, match="create the ResNet with features_only=True"):
        vp.torchvision_backbone(timm.create_model("resnet10t"))
    with pytest.raises(ValueError, match=r"one of detection, segmentation; found 'detect' .did you mean 'detection'"):
        vp.torchvision_backbone(BACKBONES["pyramid"](), task="detect")  # type: ignore[arg-type]


def test_scenes_are_what_their_boxes_and_masks_say():
    for seed in range(20):
        first, again = scene(seed), scene(seed)
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
        boxes = masks_to_boxes(first.masks) + torch.tensor([0, 0, 1, 1])
        assert torch.equal(first.boxes, boxes)
        assert (first.masks.sum(0) <= 1).all()
        assert torch.equal((first.masks * first.labels[:, None, None]).sum(0), first.classes)
        assert first.picture.min() >= 0
        assert first.picture.max() <= 1
    assert {int(label) for seed in range(20) for label in scene(seed).labels} == {1, 2, 3}
