"""What SCEdit's authors and the port of their code have saved becomes an adapter, or one clear error."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import diffusion_peft as dp
from peft_kernels.adapter_formats import PEFT_ROOT

from ..kernels.tiny_unet import move, run, unet

SMALL: dict[str, Any] = {"control": True, "pre_dim_ratio": 0.25, "pre_out_channels": 5, "dense_kernel": 1}
SKIPS = 4
LN = {"down": "ln1", "up": "ln2"}


def saved(tmp_path: Path, **settings: Any) -> tuple[Any, dict[str, Tensor]]:
    """A UNet with a moved adapter, and its tensors as this project names them."""
    model = unet()
    dp.add_adapter(model, dp.SceditConfig(**settings))
    move(model, "default")
    dp.save_adapter(model, tmp_path / "own")
    return model, load_file(tmp_path / "own" / "adapter_model.safetensors")


def renamed(tensors: dict[str, Tensor], tuner: Callable[[int, str], str], encoder: str = "") -> dict[str, Tensor]:
    """The tensors as another program names them: `tuner` says how those of skip j, at resnet `b.resnets.r`, begin."""
    found = {}
    for key, tensor in tensors.items():
        owner, _, name = key.removeprefix(PEFT_ROOT).partition(".scedit_adapter.")
        if owner == "conv_in":
            part, number, what = name.split(".")
            middle = f"pre_hint_blocks.{2 * int(number)}" if part == "pre" else f"dense_hint_blocks.{number}.1"
            found[f"{encoder}{middle}.{what}"] = tensor
        else:
            block, resnet = map(int, re.findall(r"\d+", owner))
            part, what = name.split(".")
            found[f"{tuner(2 * block + resnet, owner)}.tuner_op.{LN[part]}.{what}"] = tensor
    return found


LAYOUTS: dict[str, Callable[[int, str], str]] = {
    "native": lambda j, owner: f"model.lsc_identity.{j}",
    "port": lambda j, owner: f"base.unet.{owner}.scetuner_style",
    "port, native places": lambda j, owner: f"lsc_identity.{j}.scetuner_style",
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("settings", [{}, {"down_ratio": 0.5}, {"skip_indices": [1, 3]}], ids=str)
def test_tuner_of_other_programs_gives_the_same_pictures(layout: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model, tensors = saved(tmp_path, **settings)
    save_file(renamed(tensors, LAYOUTS[layout]), tmp_path / "theirs.safetensors")
    other = unet()
    dp.load_adapter(other, tmp_path / "theirs.safetensors")
    assert torch.equal(run(other), run(model))


@pytest.mark.parametrize("start", ["0.", "model.0.", "model.", ""])
def test_controllable_tuner_gives_the_same_pictures(start: str, tmp_path: Path) -> None:
    model, tensors = saved(tmp_path, **SMALL)
    theirs = renamed(tensors, lambda j, owner: f"{start}lsc_tuner_blocks.{j}", start)
    save_file(theirs, tmp_path / "theirs.safetensors")
    other = unet()
    dp.load_adapter(other, tmp_path / "theirs.safetensors", "edges")
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with dp.condition_on(model, image), dp.condition_on(other, image):
        assert torch.equal(run(other), run(model))


def wider(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    found = dict(tensors)
    found["model.lsc_identity.2.tuner_op.ln1.weight"] = torch.zeros(8, 12)
    return found


CHANGED: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "another UNet": (wider, r"at skip 2 \(up_blocks.1.resnets.0\) it has 12 channels, expected 8"),
    "a skip too many": (
        lambda t: {**t, "model.lsc_identity.9.tuner_op.ln1.weight": torch.zeros(2, 2)},
        r"1 keys are for nothing, first 'model.lsc_identity.9.tuner_op.ln1.weight' \(94% match\)",
    ),
    "a missing bias": (
        lambda t: {k: v for k, v in t.items() if k != "model.lsc_identity.1.tuner_op.ln2.bias"},
        "it lacks tuner 1, up.bias",
    ),
    "two adapters": (lambda t: t | {k.replace("model.", "x."): v.clone() for k, v in t.items()}, "holds 2 adapters"),
    "another shape": (lambda t: {**t, "model.lsc_identity.0.tuner_op.ln1.bias": torch.zeros(3)}, "down.bias"),
    "not a number": (lambda t: {**t, "model.lsc_identity.0.tuner_op.ln1.bias": torch.full((16,), torch.nan)}, "NaN"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_what_does_not_fit_is_one_error_and_changes_nothing(case: str, tmp_path: Path) -> None:
    change, said = CHANGED[case]
    _, tensors = saved(tmp_path)
    save_file(change(renamed(tensors, LAYOUTS["native"])), tmp_path / "theirs.safetensors")
    model = unet()
    expected = run(model)
    with pytest.raises(dp.AdapterError, match=said):
        dp.load_adapter(model, tmp_path / "theirs.safetensors")
    assert torch.equal(run(model), expected)
    assert not [name for name, _ in model.named_parameters() if "scedit" in name]


def test_whole_condition_encoder_is_needed(tmp_path: Path) -> None:
    _, tensors = saved(tmp_path, **SMALL)
    theirs = renamed(tensors, lambda j, owner: f"0.lsc_tuner_blocks.{j}", "0.")
    del theirs[f"0.dense_hint_blocks.{SKIPS - 1}.1.weight"]
    save_file(theirs, tmp_path / "theirs.safetensors")
    with pytest.raises(dp.AdapterError, match=r"it lacks dense\.3\.weight"):
        dp.load_adapter(unet(), tmp_path / "theirs.safetensors")
