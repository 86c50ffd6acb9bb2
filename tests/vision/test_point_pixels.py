"""P2P: pictures that keep a cloud's geometry, what is trained to paint them, and every method on the image model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model

import vision_peft as vp
from peft_kernels.ops.point_sets import painted, pixel_places
from vision_peft.models.point_pixels import PointToPixel, rotation, view_rotation

from .tiny_clouds import clouds


def model(**settings: Any) -> PointToPixel:
    torch.manual_seed(0)
    return vp.point_to_pixel("vit_mini", 5, **{"views": 2, **settings}).eval()


def test_one_point_paints_nine_equal_pixels_in_the_middle() -> None:
    places = pixel_places(torch.rand(1, 1, 3), 8)
    assert places.tolist() == [[[3, 3]]]
    picture = painted(torch.tensor([[[2.0, 5.0]]]), places, 8)[0]
    assert picture.flatten(0, 1).unique(dim=0).tolist() == [[0, 0], [2, 5]]
    assert picture[2:5, 2:5, 0].tolist() == [[2.0] * 3] * 3


def test_painting_keeps_the_sum_and_overlapping_points_add_up() -> None:
    features = torch.rand(2, 40, 6, dtype=torch.float64)
    picture = painted(features, pixel_places(clouds(2), 12), 12)
    torch.testing.assert_close(picture.sum((1, 2)), 9 * features.sum(1))


@pytest.mark.parametrize("size", [8, 12, 224])
def test_a_cloud_fills_its_picture_and_where_it_is_and_how_large_does_not_matter(size: int) -> None:
    x = clouds(2, 300)
    places = pixel_places(x, size)
    assert places.min() == 1
    assert places.max() == size - 2
    assert torch.equal(places, pixel_places(4 * x + 8, size))  # exact in binary
    narrow = pixel_places(x * torch.tensor([1.0, 0.1, 1.0]), size)[..., 1]
    assert abs((narrow.min() + narrow.max()).item() - (size - 2)) <= 1


def test_flat_clouds_are_painted_too() -> None:
    line = torch.linspace(-1, 1, 9)[None, :, None] * torch.tensor([0.0, 0.0, 1.0])
    assert pixel_places(line, 10).unique().tolist() == [4]


def test_rotations_are_rotations() -> None:
    angles = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 6
    turns = view_rotation(angles, angles.flip(0))
    torch.testing.assert_close(turns @ turns.mT, torch.eye(3, dtype=torch.float64).expand(6, 3, 3))
    torch.testing.assert_close(torch.linalg.det(turns), torch.ones(6, dtype=torch.float64))
    up, quarter = torch.tensor([[0.0, 0, 1]]), torch.tensor([math.pi / 2])
    torch.testing.assert_close(rotation(up, quarter)[0] @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]))


COUNTS = [
    ("deit_tiny_patch16_224", 101_195),
    ("deit_small_patch16_224", 118_667),
    ("deit_base_patch16_224", 153_611),
]


@pytest.mark.parametrize(("name", "count"), COUNTS)
def test_counts_of_the_authors_code(name: str, count: int) -> None:
    with torch.device("meta"):
        painter = vp.point_to_pixel(name, 40)
        assert sum(p.numel() for p in painter.painter.parameters()) == 83_683
        adapted = get_peft_model(painter, vp.painter_config(painter))  # type: ignore[arg-type]
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == count


def test_all_that_is_trained_gets_a_gradient_and_comes_back(tmp_path: Path) -> None:
    base, x = model(), clouds()
    adapted = get_peft_model(base, vp.painter_config(base)).train()  # type: ignore[arg-type]
    adapted(x).square().sum().backward()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    torch.optim.SGD(trained, lr=0.01).step()
    expected = adapted.eval()(x)
    adapted.save_pretrained(str(tmp_path))
    torch.testing.assert_close(PeftModel.from_pretrained(model(), tmp_path).eval()(x), expected, rtol=0, atol=0)


def test_batch_norms_of_image_models_are_found_by_type() -> None:
    painter = vp.point_to_pixel("resnet10t", 5)
    adapted = get_peft_model(painter, vp.painter_config(painter))  # type: ignore[arg-type]
    names = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert any(".bn1." in name for name in names)
    assert not any(".conv1.weight" in name and ".painter." not in name for name in names)


def test_other_methods_adapt_the_image_model_and_train_the_painter() -> None:
    adapted = get_peft_model(model(), vp.SsfConfig(init_std=0.0)).eval()  # type: ignore[arg-type]
    torch.testing.assert_close(adapted(clouds()), model()(clouds()), rtol=1e-4, atol=1e-5)
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert any(".painter." in name for name in trained)
    assert any("ssf_" in name for name in trained)


def test_views_are_averaged_outside_of_training_and_random_within() -> None:
    painter, x = model(views=1), clouds()
    one = painter(x)
    torch.testing.assert_close(one, painter(x), rtol=0, atol=0)
    assert not torch.allclose(one, model(views=2)(x), atol=1e-5)
    painter.train()
    assert not torch.allclose(painter(x), painter(x), atol=1e-5)


def test_a_cloud_larger_than_its_picture_is_refused() -> None:
    assert model(obj_size=24)(clouds()).shape == (3, 5)
    with pytest.raises(ValueError, match="at most the picture's 32 pixels and views 1 to 8; found 40 and 2"):
        model(obj_size=40)
