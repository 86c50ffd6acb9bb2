"""The embedded model: named and shaped as timm's other vision transformers, and loaded without a network."""

import json
from typing import Any

import pytest
import timm
import torch
from torch import nn

from vision_peft.models.vit_mini import WEIGHTS, vit_mini


def test_names_are_those_of_a_timm_vit() -> None:
    names = dict(timm.create_model("vit_mini").named_modules())
    assert isinstance(names["blocks.4.attn.qkv"], nn.Linear)
    assert isinstance(names["blocks.0.mlp.fc1"], nn.Linear)
    assert isinstance(names["patch_embed.proj"], nn.Conv2d)
    assert isinstance(names["head"], nn.Linear)
    assert "vit_mini" in timm.list_models()


def test_size() -> None:
    model = timm.create_model("vit_mini")
    assert sum(parameter.numel() for parameter in model.parameters()) == 895_562
    assert not [name for name, _ in model.named_buffers()]  # nothing that a frozen model would still change


def test_other_sizes_of_pictures() -> None:
    model: Any = timm.create_model("vit_mini", pretrained=True, img_size=48)
    plain: Any = timm.create_model("vit_mini", pretrained=True)
    assert model.pos_embed.shape == (1, 144, 128)
    assert torch.equal(model.blocks[1].mlp.fc1.weight, plain.blocks[1].mlp.fc1.weight)
    maps: Any = timm.create_model("vit_mini", pretrained=True, img_size=48, features_only=True, out_indices=(1, 4))
    assert [tuple(found.shape) for found in maps(torch.randn(1, 3, 48, 48))] == [(1, 128, 12, 12)] * 2


def test_pictures_that_are_not_square_and_of_any_size() -> None:
    fixed: Any = timm.create_model("vit_mini", pretrained=True, img_size=(32, 48)).eval()
    free: Any = timm.create_model("vit_mini", pretrained=True, dynamic_img_size=True).eval()
    x = torch.randn(2, 3, 32, 48)
    torch.testing.assert_close(free(x), fixed(x), rtol=0, atol=1e-3)  # positions resized in half precision, as stored
    with pytest.raises(ValueError, match=r"multiples of 4, but the pictures have \(32, 46\)"):
        free(x[..., :46])


def test_shapes() -> None:
    model: Any = timm.create_model("vit_mini", num_classes=7).eval()
    x = torch.randn(2, 3, 32, 32)
    assert model(x).shape == (2, 7)
    assert model.forward_features(x).shape == (2, 64, 128)
    maps = model.forward_intermediates(x, intermediates_only=True)
    assert [tuple(found.shape) for found in maps] == [(2, 128, 8, 8)] * len(model.blocks)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    with pytest.raises(ValueError, match="vit_mini takes"):
        model(torch.randn(2, 3, 64, 64))


def test_checkpointing_changes_no_gradient() -> None:
    model: Any = timm.create_model("vit_mini")
    x = torch.randn(2, 3, 32, 32)
    gradients = []
    for on in (False, True):
        model.set_grad_checkpointing(on)
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right)


def test_meta_device_needs_no_memory() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_mini")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    given = timm.create_model("vit_mini", device="meta")
    assert {parameter.device.type for parameter in given.parameters()} == {"meta"}


def test_weights_load_offline_also_for_other_classes() -> None:
    ten, seven = (vit_mini(pretrained=True, num_classes=count) for count in (10, 7))
    bare = timm.create_model("vit_mini", pretrained=True, num_classes=0)
    for name, tensor in bare.state_dict().items():
        assert torch.equal(tensor, ten.state_dict()[name])
        assert torch.equal(tensor, seven.state_dict()[name])
    assert seven.state_dict()["head.weight"].shape == (7, 128)
    assert WEIGHTS.stat().st_size < 4_000_000


def test_card_states_what_was_measured() -> None:
    card = WEIGHTS.with_name("README.md").read_text(encoding="utf-8")
    measured = json.loads(WEIGHTS.with_name("measured.json").read_text(encoding="utf-8"))
    assert measured["accuracy"] >= 0.75
    assert f"{100 * measured['accuracy']:.2f} %" in card


def test_registration_names_the_file() -> None:
    cfg = timm.get_pretrained_cfg("vit_mini")
    assert cfg is not None
    assert cfg.file == str(WEIGHTS)
