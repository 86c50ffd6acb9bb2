"""What DiffFitConfig refuses, with a word that helps, and that a refused model stays as it was."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

import diffusion_peft as dp

from .difffit_models import attach, base, move, run


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gamma_sites": ["atn_out"]}, r"knows the sites attn_out, .*; found 'atn_out' \(did you mean 'attn_out'\?\)"),
        ({"gamma_modules": {"out": "fc"}}, r"knows the sites attn_out, .*; found 'out'"),
        ({"gamma_sites": ["q", "q"]}, "gamma_sites must be without duplicates"),
        ({"gamma_blocks": "half"}, r"gamma_blocks must be one of all, first_half; found 'half'"),
        ({"gamma_blocks": [0, 0]}, r"gamma_blocks must be a list of different indices from 0; found \[0, 0\]"),
        ({"gamma_blocks": [-1]}, r"gamma_blocks must be a list of different indices from 0; found \[-1\]"),
        (
            {"gamma_blocks": 0},
            "gamma_blocks must be all, first_half, a number of blocks, or a list.*; found 0",
        ),
        ({"gamma_init": 0.0}, "gamma_init must be above 0; found 0.0"),
        ({"gamma_shape": "row"}, "gamma_shape must be one of channel, scalar; found 'row'"),
        ({"pos_scale": 0.0}, "pos_scale must be above 0 or None; found 0.0"),
        ({"num_classes": 0}, "num_classes must be at least 1 or None; found 0"),
        ({"lr_ratio": -1.0}, "lr_ratio must be above 0; found -1.0"),
        ({"lr_ratio": float("inf")}, "lr_ratio must be above 0; found inf"),
        ({"gamma_init": float("inf")}, "gamma_init must be above 0; found inf"),
        ({"train_embedding": "("}, r"DiffFitConfig.train_embedding is no regular expression: '\(' \(missing"),
        ({"gamma_modules": {"q": "("}}, r"DiffFitConfig.gamma_modules\['q'\] is no regular expression: '\('"),
        (
            {"gamma_sites": (), "train_bias": False, "train_norm": False, "train_embedding": False},
            "leaves nothing to train",
        ),
    ],
)
def test_a_wrong_field_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dp.DiffFitConfig(**fields)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("dit", {"gamma_blocks": [0, 2]}, "asks for block 2; the model has 2 blocks"),
        ("dit", {"gamma_blocks": 3}, "asks for block 2; the model has 2 blocks"),
        ("dit", {"gamma_sites": ["cross_out"]}, "names cross_out, which DiTTransformer2DModel does not.*; it has attn"),
        ("sd15", {"gamma_sites": ["single_out"]}, "names single_out, which UNet2DConditionModel does not have"),
        ("dit", {"train_embedding": "table"}, "matches no embedding layer: 'table'; there are transformer"),
        ("dit", {"gamma_modules": {"attn_out": "attn"}}, r"gamma_modules\['attn_out'\] matches no module: 'attn'"),
        ("dit", {"target_modules": ["pos_embed"]}, r"'pos_embed' \(PatchEmbed\) has nothing that"),
    ],
)  # fmt: skip
def test_what_a_model_does_not_have_is_refused(name: str, fields: dict[str, Any], message: str) -> None:
    model = base(name)
    before = {key: (type(module), dict(module.__dict__)) for key, module in model.named_modules()}
    with pytest.raises(ValueError, match=message):
        attach(model, dp.DiffFitConfig(**fields))
    assert {key: type(module) for key, module in model.named_modules()} == {k: t for k, (t, _) in before.items()}
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_of_no_known_family_asks_for_its_layers() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="does not know where the blocks of Sequential end: name the layers in"):
        attach(model, dp.DiffFitConfig())
    assert sum(p.numel() for p in attach(model, dp.DiffFitConfig(gamma_sites=[])).parameters() if p.requires_grad) == 3


@pytest.mark.parametrize(("blocks", "count"), [("all", 15), ("first_half", 7), (4, 4), ([0, 14], 2)])
def test_blocks_that_carry_factors(blocks: Any, count: int) -> None:
    assert len(dp.DiffFitConfig(gamma_blocks=blocks).block_indices(15)) == count


def test_first_half_of_a_unet_is_that_of_its_forward_pass() -> None:
    model = attach(base("sd15"), dp.DiffFitConfig())
    factors = [key for key, _ in model.named_parameters() if ".attn1." in key and "gamma" in key]
    carriers = {key.partition(".attn1.")[0] for key in factors}
    assert {key.split(".")[2] for key in carriers} == {"down_blocks", "mid_block", "up_blocks"}
    assert len([key for key in carriers if ".down_blocks." in key]) == 3


def test_another_start_of_the_factors_scales_what_they_stand_on() -> None:
    layers = nn.Sequential(nn.Linear(3, 4))
    x = torch.randn(2, 3)
    expected = 1.5 * layers(x)
    with pytest.warns(UserWarning, match=r"gamma_init=1.5 changes the output"):
        config = dp.DiffFitConfig(gamma_modules={"ffn_out": "0"}, gamma_init=1.5)
    torch.testing.assert_close(attach(layers, config)(x), expected)


def test_biases_and_affines_that_were_not_there_merge() -> None:
    adapted = attach(base("dit"), dp.DiffFitConfig(add_bias=True, add_norm_affine=True)).eval()
    assert torch.equal(run("dit", adapted), run("dit", base("dit")))
    move(adapted)
    expected = run("dit", adapted)
    plain = adapted.merge_and_unload()  # type: ignore[operator]
    torch.testing.assert_close(run("dit", plain), expected, rtol=1e-5, atol=1e-5)


def test_a_text_encoder_has_its_places() -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    model = attach(CLIPTextModel(CLIPTextConfig(vocab_size=20, **sizes)), dp.DiffFitConfig())
    gammas = [key for key, _ in model.named_parameters() if "delta_gamma" in key]
    places = [key.partition(".layers.")[2].partition(".difffit")[0] for key in gammas]
    assert places == ["0.self_attn.out_proj", "0.mlp.fc2"]
    assert not [key for key, p in model.named_parameters() if "embedding" in key and p.requires_grad]


def test_a_convnext_trains_its_layer_scale_and_a_resnet_its_norms() -> None:
    scales = attach(timm.create_model("convnext_atto", num_classes=2), dp.DiffFitConfig(gamma_blocks="all"))
    assert [key for key, p in scales.named_parameters() if p.requires_grad and key.endswith(".gamma")] != []
    norms = attach(timm.create_model("resnet18", num_classes=2), dp.DiffFitConfig()).train()
    assert not [key for key, _ in norms.named_parameters() if "delta_gamma" in key]
    assert not [m for m in norms.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
