"""Point transformers themselves: their patch encoder, what their outputs depend on, and what they are given."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vision_peft.models.point_patches import PatchEncoder

from .tiny_clouds import clouds, tiny


def concatenated(encoder: PatchEncoder, patches: Tensor) -> Tensor:
    """The encoder as the papers draw it: convolutions over points, the maximum repeated and joined."""
    batch, groups, *_ = patches.shape
    f = encoder.first_conv(patches.flatten(0, 1).mT)
    f = encoder.second_conv(torch.cat([f.amax(-1, keepdim=True).expand_as(f), f], 1))
    return f.amax(-1).view(batch, groups, -1)


@pytest.mark.parametrize("widths", [(6, 8), (4, 6, 8)])
@pytest.mark.parametrize("training", [False, True])
def test_the_split_encoder_is_the_concatenated_one(widths: tuple[int, ...], training: bool) -> None:
    torch.manual_seed(0)
    encoder, patches = PatchEncoder(10, widths).double().train(training), torch.randn(2, 5, 7, 3, dtype=torch.float64)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    found = encoder(patches)
    torch.testing.assert_close(found, concatenated(encoder, patches), rtol=0, atol=1e-12)


def test_the_order_of_points_in_a_patch_does_not_matter() -> None:
    torch.manual_seed(0)
    encoder, patches = PatchEncoder(10, (6, 8)).eval(), torch.randn(2, 5, 7, 3)
    torch.testing.assert_close(encoder(patches[:, :, torch.randperm(7)]), encoder(patches))


@pytest.mark.parametrize("name", ["point_mae", "point_bert", "point_gpt_s"])
def test_evaluation_is_the_same_each_time_and_for_one_cloud_alone(name: str) -> None:
    model, x = tiny(name), clouds()
    torch.testing.assert_close(model(x), model(x), rtol=0, atol=0)
    torch.testing.assert_close(model(x[:1]), model(x)[:1], rtol=1e-5, atol=1e-6)


def test_one_cloud_in_training_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="at least two clouds in training; found one"):
        tiny().train()(clouds(1))


def test_as_many_patches_as_points() -> None:
    assert torch.isfinite(tiny()(clouds(2, 8))).all()


@pytest.mark.parametrize("points", [3, 7])
def test_fewer_points_than_patches_or_than_their_size_are_refused(points: int) -> None:
    with pytest.raises(ValueError, match=f"number of points, {points}; found 8"):
        tiny()(clouds(1, points))
