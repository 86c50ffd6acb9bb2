"""What each method adapts by default, by name and number, on the published denoisers (meta device)."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

import diffusion_peft as dp
from peft_kernels.registry import methods

from .denoiser_methods import ELSEWHERE, METHODS, REFUSED, configured
from .true_configs import ARCHITECTURES, published

# Trainable parameters with the methods' defaults. `full` are the models' totals, `bitfit` the counts of biases that
# DiffFit's brief gives, LoRA of rank 8 twice the 797,184 of diffusers' example (SD 1.5, rank 4).
COUNTS: dict[str, dict[str, int]] = {
    "sd15": {
        "adapter_plus": 224_768,
        "bitfit": 343_684,
        "difffit": 457_924,
        "dora": 1_694_208,
        "full": 859_520_964,
        "hipa": 3_188_736,
        "ia3": 99_840,
        "ln_tuning": 200_320,
        "loha": 3_188_736,
        "lokr": 138_592,
        "lora": 1_594_368,
        "oft": 1_541_568,
        "shira": 6_377_472,
        "sliced_lora": 1_195_008,
        "snell": 2_992_128,
        "snella": 11_968_992,
        "ssf": 755_840,
    },
    "sd2": {"bitfit": 343_684, "full": 865_910_724, "hipa": 3_319_808, "lora": 1_659_904},
    "sdxl": {"bitfit": 1_289_284, "full": 2_567_463_684, "hipa": 23_224_320, "lora": 11_612_160, "snell": 20_930_560},
    "sd3": {
        "adapter_plus": 663_744,
        "bitfit": 1_102_912,
        "dora": 4_961_280,
        "full": 2_028_328_000,
        "ia3": 436_224,
        "loha": 9_338_880,
        "lokr": 340_480,
        "lora": 4_669_440,
        "oft": 4_523_520,
        "sliced_lora": 3_514_368,
        "snell": 10_444_800,
        "snella": 41_780_052,
        "ssf": 1_603_584,
    },
    "flux": {
        "adapter_plus": 3_152_328,
        "bitfit": 3_065_920,
        "full": 11_901_408_320,
        "ia3": 1_517_568,
        "ln_tuning": 19_456,
        "lora": 13_074_432,
        "snell": 32_686_080,
        "ssf": 4_681_728,
    },
    "dit": {
        "adapter_plus": 580_832,
        "bitfit": 551_840,
        "dora": 2_193_408,
        "full": 749_826_464,
        "ia3": 193_536,
        "loha": 4_128_768,
        "lokr": 179_200,
        "lora": 2_064_384,  # 28 · 4 · 8 · (1152 + 1152)
        "oft": 1_999_872,
        "sliced_lora": 1_548_288,
        "snell": 4_644_864,  # 28 · 8 · (4 · (1152 + 1152) + 2 · (1152 + 4608))
        "snella": 18_579_960,  # and three scalars in each of 168 layers
        "ssf": 714_240,
    },
    "pixart": {"bitfit": 433_568, "full": 611_349_152, "lora": 4_128_768, "snell": 6_709_248, "ssf": 972_288},
    "pixart_uncaptioned": {"bitfit": 429_728, "full": 604_808_096},
}


@cache
def shared(architecture: str) -> Any:
    return published(architecture)


def adapted_names(model: Any) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


@pytest.mark.parametrize(("architecture", "name"), [(a, name) for a, row in COUNTS.items() for name in row])
def test_method_trains_so_many_parameters_by_default(architecture: str, name: str) -> None:
    model = shared(architecture)
    with torch.device("meta"):
        dp.add_adapter(model, configured(name))
    layers = adapted_names(model)
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    idle = [layer for layer in layers if not any(key.startswith(f"{layer}.") for key in trained)]
    dp.delete_adapters(model, "default")
    assert sum(parameter.numel() for parameter in trained.values()) == COUNTS[architecture][name]
    assert not idle, f"nothing is trained at {idle}"


def test_every_method_of_the_table_is_counted_or_refused_or_tested_elsewhere() -> None:
    assert set(METHODS) == set(COUNTS["sd15"])
    assert not set(methods()) - set(COUNTS["sd15"]) - set(REFUSED) - ELSEWHERE


# As in diffusers' training examples for LoRA.
PROJECTIONS = {
    "sd15": ("to_q", "to_k", "to_v", "to_out.0"),
    "sdxl": ("to_q", "to_k", "to_v", "to_out.0"),
    "sd3": ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    "flux": ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    "dit": ("to_q", "to_k", "to_v", "to_out.0"),
    "pixart": ("to_q", "to_k", "to_v", "to_out.0"),
}
MLPS = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp")


@pytest.mark.parametrize("architecture", PROJECTIONS)
@pytest.mark.parametrize("name", ["lora", "snell"])
def test_projections_are_those_that_users_of_diffusers_expect(architecture: str, name: str) -> None:
    ends = tuple(f".{end}" for end in PROJECTIONS[architecture] + (MLPS if name == "snell" else ()))
    model = shared(architecture)
    expected = {key for key, _ in model.named_modules() if key.endswith(ends)}
    if architecture == "flux" and name == "snell":
        expected |= {key for key, _ in model.named_modules() if key.startswith("single_") and key.endswith(".proj_out")}
    expected -= {"transformer_blocks.23.attn.add_q_proj"}  # of the last text stream, whose output SD3 drops
    with torch.device("meta"):
        dp.add_adapter(model, configured(name))
    found = adapted_names(model)
    dp.delete_adapters(model, "default")
    assert found == expected


@pytest.mark.parametrize("architecture", ["sd15", "sd3", "dit"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_for_a_denoiser_is_refused(architecture: str, name: str) -> None:
    model = shared(architecture)
    with pytest.raises(ValueError, match=rf"{ARCHITECTURES[architecture].model} {REFUSED[name]}"):
        dp.add_adapter(model, configured(name))
    assert not hasattr(model, "peft_config")
    assert not adapted_names(model)


@pytest.mark.parametrize("architecture", ["sd3", "dit", "pixart"])
def test_norms_without_parameters_are_not_tuned(architecture: str) -> None:
    with pytest.raises(ValueError, match=r"has no norm modules, which this method adapts by default"):
        dp.add_adapter(shared(architecture), configured("ln_tuning"))
