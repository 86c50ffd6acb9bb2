"""Exact numbers of parameters that DiffFit trains on published architectures (meta device)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch

import diffusion_peft as dp
from diffusion_peft.methods.difffit.places import is_norm
from tests.golden.cases.dit_modules import DiT

from .difffit_models import attach
from .true_configs import published

SIX = ["attn_out", "ffn_out", "q", "k", "v", "o"]
THREE = ["attn_out", "ffn_out", "cross_out"]
ALL: dict[str, Any] = {"gamma_blocks": "all"}
TIED: dict[str, Any] = {"gamma_sites": []}

# The original DiT-XL/2; 101 classes unless it says otherwise.
ORIGINAL = [
    ("biases, 1000 classes", {"gamma_sites": [], "train_embedding": False}, 1000, 489_632),
    ("class table, 1000 classes", {"gamma_sites": [], "train_bias": False}, 1000, 1_153_152),
    ("class table", {"gamma_sites": [], "train_bias": False}, 101, 117_504),
    ("BitFit", {"gamma_sites": []}, 101, 607_136),
    ("factors in all blocks", ALL, 101, 671_648),
    ("default", {}, 101, 639_392),
    ("first 14 blocks", {"gamma_blocks": 14}, 101, 639_392),
    ("default, 1000 classes replaced by 101", {"num_classes": 101}, 1000, 639_392),
    ("factors on attention too", {"gamma_sites": SIX}, 101, 703_904),
    ("norms given an affine, all blocks", {**ALL, "add_norm_affine": True}, 101, 802_976),
    ("norms given an affine", {"add_norm_affine": True}, 101, 770_720),
    ("norms given an affine, factors on attention too", {"add_norm_affine": True, "gamma_sites": SIX}, 101, 835_232),
    ("seven factors in all blocks", {**ALL, "gamma_sites": [*SIX, "ffn"]}, 101, 832_928),
    ("one number a site", {"gamma_shape": "scalar"}, 101, 607_136 + 2 * 14),
]
DIFFUSERS = [
    ("dit", "tied", TIED, 489_632 + 1_153_152),
    ("dit", "tied, without classes", {**TIED, "train_embedding": False}, 489_632),
    ("dit", "untied", {**TIED, "tie_replicated": False}, 551_840 + 32_288_256),
    ("dit", "tied, factors", ALL, 489_632 + 1_153_152 + 64_512),
    ("pixart_uncaptioned", "three factors", {**ALL, "gamma_sites": THREE}, 526_496 + 195_840),
    ("sd15", "three factors", {**ALL, "gamma_sites": THREE}, 481_284),
    ("sd15", "as the port", {**ALL, "gamma_sites": [*THREE, "q", "k", "v", "o"]}, 581_124),
    ("sd15", "added biases", {**ALL, "gamma_sites": THREE, "add_bias": True}, 481_284 + 74_880),
    ("sd15", "biases", {"gamma_sites": [], "train_norm": False}, 343_684),
    ("sd15", "norms", {"gamma_sites": [], "train_bias": False}, 2 * 100_160),
    ("sd3", "both streams", ALL, 1_247_296),
    ("flux", "both streams", ALL, 3_318_848),
    ("flux", "single blocks too", {**ALL, "gamma_sites": ["attn_out", "ffn_out", "single_out"]}, 3_435_584),
]


def trainable(make: Callable[[], Any], fields: dict[str, Any]) -> int:
    with torch.device("meta"):
        model = attach(make(), dp.DiffFitConfig(**fields))
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_the_restated_dit_has_the_published_size() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in DiT().parameters()) == 675_129_632
        assert sum(p.numel() for p in DiT(classes=101).parameters() if p.requires_grad) == 673_799_072


@pytest.mark.parametrize(("fields", "classes", "count"), [pytest.param(f, c, n, id=name) for name, f, c, n in ORIGINAL])
def test_original_dit(fields: dict[str, Any], classes: int, count: int) -> None:
    assert trainable(partial(DiT, classes=classes), fields) == count


@pytest.mark.parametrize(
    ("model", "fields", "count"), [pytest.param(m, f, n, id=f"{m}, {name}") for m, name, f, n in DIFFUSERS]
)
def test_diffusers_models(model: str, fields: dict[str, Any], count: int) -> None:
    assert trainable(partial(published, model), fields) == count


def test_vit_b() -> None:
    assert trainable(partial(timm.create_model, "vit_base_patch16_224", num_classes=0), ALL) == 140_544


@pytest.mark.parametrize("name", ["swin_base_patch4_window7_224", "convnext_base", "resnet50"])
def test_other_backbones_train_biases_norms_and_the_ends_of_their_blocks(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    biases = sum(n for name, n in sizes.items() if name.endswith(".bias"))
    norms = sum(sizes[f"{name}.weight"] for name, module in model.named_modules() if is_norm(module))
    ends = {
        "swin": sum(n for name, n in sizes.items() if name.endswith(("attn.proj.bias", "mlp.fc2.bias"))),
        "convnext": sum(n for name, n in sizes.items() if name.endswith(".gamma")),
        "resnet50": 0,
    }
    assert trainable(lambda: model, ALL) == biases + norms + ends[name.partition("_")[0]]


@pytest.mark.parametrize("name", ["dit", "sd15", "sd3", "flux", "pixart"])
def test_nothing_is_chosen_by_its_name(name: str) -> None:
    """No matrix but the class table is trained, and of modules that are called norm only the biases of modulations."""
    with torch.device("meta"):
        model = attach(published(name), dp.DiffFitConfig())
    shapes = {n: p.shape for n, p in model.named_parameters() if p.requires_grad}
    matrices = [n for n, shape in shapes.items() if len(shape) > 1 and not n.endswith("scale_shift_table")]
    assert [n for n in matrices if "embedding_table" not in n] == []
    assert len(matrices) == (1 if name == "dit" else 0)
    plain = dict(model.get_base_model().named_modules())
    for key in shapes:
        if ".delta_weight" in key and key not in matrices:
            owner = plain[key.removeprefix("base_model.model.").partition(".difffit_adapter.")[0]]
            assert is_norm(owner.get_submodule("base_layer")), key
