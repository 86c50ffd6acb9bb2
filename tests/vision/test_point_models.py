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


@torch.no_grad()
def test_point_gpt_has_the_quirks_of_its_checkpoints() -> None:
    model, x = tiny("point_gpt_s").double(), clouds().double()
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    patches, centers = model.group_divider(x)
    step = (centers[:, 1:] - centers[:, :1]).square().sum(-1)
    assert (step.argmin(1) == 0).all()  # the second is the nearest to the first

    def row(parameter: Tensor) -> Tensor:
        return parameter.view(1, 1, -1).expand(len(x), -1, -1)

    wave = torch.stack([(2 * torch.pi * centers).sin(), (2 * torch.pi * centers).cos()], -1)
    pos = torch.cat([row(model.cls_pos), row(model.sos_pos), wave.repeat(1, 1, 1, 4).flatten(2)], 1)  # crossed
    tokens = torch.cat([row(model.blocks.sos), row(model.cls_token), model.encoder(patches)], 1)
    later = torch.full((tokens.shape[1],) * 2, -torch.inf, dtype=torch.float64).triu(1)
    for block in model.blocks.layers:
        y = block.ln_1(tokens + pos)
        q, k, v = (y @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).unflatten(-1, (3, 2, -1)).unbind(2)
        scores = torch.einsum("bqhc,bkhc->bhqk", q, k) * q.shape[-1] ** -0.5 + later
        y = y + block.attn.out_proj(torch.einsum("bhqk,bkhc->bqhc", scores.softmax(-1), v).flatten(2))
        tokens = y + block.mlp(block.ln_2(y))  # the residual starts from the normalised input
    expected = model.blocks.cls_norm(model.blocks.ln_f(tokens))
    torch.testing.assert_close(model.forward_features(x), expected, rtol=0, atol=1e-10)
    pooled = torch.cat([expected[:, 1], expected[:, 2:].amax(1)], -1)
    torch.testing.assert_close(model(x), model.blocks.cls_head_finetune(pooled), rtol=0, atol=1e-10)


def test_one_cloud_in_training_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="at least two clouds in training; found one"):
        tiny().train()(clouds(1))


def test_as_many_patches_as_points() -> None:
    assert torch.isfinite(tiny()(clouds(2, 8))).all()


@pytest.mark.parametrize("points", [3, 7])
def test_fewer_points_than_patches_or_than_their_size_are_refused(points: int) -> None:
    with pytest.raises(ValueError, match=f"number of points, {points}; found 8"):
        tiny()(clouds(1, points))
