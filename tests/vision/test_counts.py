"""Exact numbers of trainable parameters, without the classifier, on the published architectures (meta device)."""

from __future__ import annotations

import warnings
from typing import Any

import peft
import pytest
import timm
import torch
from peft import PeftConfig
from torch import nn

import vision_peft as vp
from peft_kernels.registry import method

VIT_B, VIT_L, VIT_H = "vit_base_patch16_224", "vit_large_patch16_224", "vit_huge_patch14_224"
SWIN_B, CONVNEXT_B = "swin_base_patch4_window7_224", "convnext_base"
CLASSES = 10


def bare(architecture: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(architecture, num_classes=CLASSES)


def trainable(architecture: str, config: PeftConfig) -> int:
    """Trainable parameters once the adapter is attached, less those of the classifier."""
    model: Any = bare(architecture)
    head = sum(parameter.numel() for parameter in model.get_classifier().parameters())
    assert head == CLASSES * (model.num_features + 1)
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, config)
    return sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad) - head


def adapter(position: str, r: int, **fields: Any) -> vp.AdapterPlusConfig:
    return vp.AdapterPlusConfig(position=position, r=r, scaling=0.1, **fields)


def slices(*targets: str) -> vp.SlicedLoraConfig:
    return vp.SlicedLoraConfig(r=8, target_modules=list(targets))


VIT_B_COUNTS = [
    ("full fine-tuning", vp.FullConfig(), 85_798_656),
    ("linear probe", vp.LinearProbeConfig(), 0),
    ("BitFit", vp.BitFitConfig(), 102_912),
    ("BitFit without norms and patches", vp.BitFitConfig(include_norm_bias=False, include_patch_bias=False), 82_944),
    ("SSF", vp.SsfConfig(), 205_824),
    ("LoRA q, v", vp.SlicedLoraConfig(r=8), 294_912),
    ("LoRA q, k, v", vp.SlicedLoraConfig(r=8, slices=["q", "k", "v"]), 442_368),
    ("LoRA q, v by name", slices("attn.qkv[q,v]"), 294_912),
    ("LoRA q, k, v, o", slices("attn.qkv[q,k,v]", "attn.proj"), 589_824),
    ("LoRA on the whole qkv", peft.LoraConfig(r=8, target_modules=["attn.qkv"], modules_to_save=["head"]), 294_912),
    *(
        (f"adapter {position} r={r}", adapter(position, r), count)
        for position in ("post", "pre", "intermediate", "parallel")
        for r, count in ((8, 156_768), (64, 1_189_632))
    ),
    *((f"Houlsby r={r}", adapter("houlsby", r), count) for r, count in ((4, 165_984), (8, 313_536), (64, 2_379_264))),
    ("Houlsby with the norms", adapter("houlsby", 8, train_norms=True), 313_536 + 38_400),
    ("Pfeiffer r=8", adapter("pfeiffer", 8), 175_200),
    *(
        (f"Adapter+ r={r}", vp.AdapterPlusConfig(r=r), count)
        for r, count in ((1, 36_876), (2, 55_320), (4, 92_208), (8, 165_984), (16, 313_536), (32, 608_640))
    ),
    *(
        (f"VPT-shallow p={p}", vp.VptConfig(num_tokens=p, deep=False), count)
        for p, count in ((1, 768), (10, 7_680), (50, 38_400), (100, 76_800))
    ),
    *(
        (f"VPT-deep p={p}", vp.VptConfig(num_tokens=p), count)
        for p, count in ((1, 9_216), (10, 92_160), (50, 460_800), (100, 921_600), (200, 1_843_200))
    ),
]


@pytest.mark.parametrize(("config", "count"), [pytest.param(c, n, id=name) for name, c, n in VIT_B_COUNTS])
def test_vit_b_trains_as_many_parameters_as_published(config: PeftConfig, count: int) -> None:
    assert trainable(VIT_B, config) == count


def test_norm_tuning_of_vit_b_trains_25_norms() -> None:
    assert trainable(VIT_B, method("ln_tuning").config(bare(VIT_B))) == 38_400


@pytest.mark.parametrize("last_site", ["official", "foldable"])
@pytest.mark.parametrize(("architecture", "count"), [(SWIN_B, 267_264), (CONVNEXT_B, 255_232)])
def test_ssf_trains_as_many_parameters_as_published(architecture: str, count: int, last_site: str) -> None:
    assert trainable(architecture, vp.SsfConfig(last_site=last_site)) == count


SNELL_COUNTS = [
    (VIT_B, (1_327_104, 2_654_208, 5_308_416), 768),  # and the class token
    (VIT_L, (3_538_944, 7_077_888, 14_155_776), 1024),
    (VIT_H, (5_898_240, 11_796_480, 23_592_960), 1280),
    (SWIN_B, (1_732_608, 3_465_216, 6_930_432), 0),
    (CONVNEXT_B, (1_443_840, 2_887_680, 5_775_360), 2048),  # and the head's norm
]


@pytest.mark.parametrize(
    ("architecture", "r", "count"),
    [
        pytest.param(architecture, r, count + also_trained, id=f"{architecture} r={r}")
        for architecture, counts, also_trained in SNELL_COUNTS
        for r, count in zip((8, 16, 32), counts, strict=True)
    ],
)
def test_snell_trains_as_many_parameters_as_published(architecture: str, r: int, count: int) -> None:
    assert trainable(architecture, vp.SnellConfig(r=r)) == count


SNELLA_COUNTS = [
    (VIT_B, (1_327_320, 2_654_424, 5_308_632), 768),
    (VIT_L, (3_539_376, 7_078_320, 14_156_208), 1024),
    (VIT_H, (5_898_816, 11_797_056, 23_593_536), 1280),
    (SWIN_B, (1_733_040, 3_465_648, 6_930_864), 0),
    (CONVNEXT_B, (1_444_056, 2_887_896, 5_775_576), 2048),
]


@pytest.mark.parametrize(
    ("architecture", "r", "count"),
    [
        pytest.param(architecture, r, count + also_trained, id=f"{architecture} r={r}")
        for architecture, counts, also_trained in SNELLA_COUNTS
        for r, count in zip((8, 16, 32), counts, strict=True)
    ],
)
def test_snella_trains_three_scalars_more_a_matrix(architecture: str, r: int, count: int) -> None:
    assert trainable(architecture, vp.SnellaConfig(r=r)) == count


def test_an_adapter_of_the_whole_qkv_is_another_model_of_the_same_size() -> None:
    """One factor A for q, k and v has as many parameters as two of its own for q and v, and gives other outputs."""
    torch.manual_seed(0)
    base, x = nn.Sequential(nn.Linear(6, 18, bias=False)), torch.randn(4, 6)
    whole = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
    sliced = peft.get_peft_model(
        nn.Sequential(nn.Linear(6, 18, bias=False)),
        vp.SlicedLoraConfig(r=2, target_modules=["0[q,v]"], init_weights=False),
    )
    sizes = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (whole, sliced)]
    assert sizes[0] == sizes[1] == 48
    q, k, v = (sliced.eval()(x) - sliced.unload()(x)).chunk(3, dim=-1)
    assert q.abs().min() > 0
    assert v.abs().min() > 0
    assert torch.equal(k, torch.zeros_like(k))
    assert (whole.eval()(x) - whole.unload()(x)).chunk(3, dim=-1)[1].abs().min() > 0
