"""Every method on every architecture family, with its default targets."""

from __future__ import annotations

import warnings
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

import vision_peft  # noqa: F401 (registers the methods)
from peft_kernels.registry import methods
from tests.kernels.saved_adapters import GENERAL, configured

from .architectures import ARCHITECTURES, WITHOUT_ATTENTION, WITHOUT_ONE_SEQUENCE, images, published, small

# Makes the start one in which no factor is zero: with LoRA's own start, half of the gradients are.
RANDOM: dict[str, dict[str, Any]] = {name: {"init_weights": False} for name in GENERAL} | {
    "lora": {"init_lora_weights": False},
    "dora": {"init_lora_weights": False},
    "ln_tuning": {},
    "sara": {"init_weights": False, "density": 0.6},
}


ONE_OF_EACH_FAMILY = (
    "vit_tiny_patch16_224",
    "beit_base_patch16_224",
    "swin_tiny_patch4_window7_224",
    "convnext_tiny",
    "resnet18",
)


def attach(name: str, model: nn.Module, **fields: Any) -> PeftModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return methods()[name].attach(model, configured(name, model, images(), **fields))


def refuses(name: str, architecture: str) -> bool:
    without = {"sliced_lora": WITHOUT_ATTENTION, "vpt": WITHOUT_ONE_SEQUENCE}
    return architecture in without.get(name, ())


def as_lora(name: str, architecture: str) -> bool:
    """PEFT's own take the targets of LoRA, which has all architectures; one of each family is enough for them."""
    return name in ("loha", "lokr") and architecture not in ONE_OF_EACH_FAMILY


CASES = [
    (name, architecture)
    for architecture in ARCHITECTURES
    for name in GENERAL
    if not refuses(name, architecture) and not as_lora(name, architecture)
]


# What looks at data, or at the weights' values, before it is attached needs a model with memory.
BLIND = [(name, architecture) for name, architecture in CASES if methods()[name].choose is None and name != "sara"]


@pytest.mark.parametrize(("name", "architecture"), BLIND)
def test_method_attaches_with_its_defaults(name: str, architecture: str) -> None:
    with torch.device("meta"):
        adapted = attach(name, published(architecture))
    trainable = {key for key, parameter in adapted.named_parameters() if parameter.requires_grad}
    targets = [key for key, module in adapted.named_modules() if isinstance(module, BaseTunerLayer)]
    idle = [key for key in targets if not any(t.startswith(f"{key}.") for t in trainable)]
    assert bool(targets) == (name != "linear_probe")
    assert not idle, f"nothing is trained at {idle}"
    if name == "full":
        everything = sum(parameter.numel() for parameter in published(architecture).parameters())
        assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == everything


@pytest.mark.parametrize(("name", "architecture"), [case for case in BLIND if case[1] in ONE_OF_EACH_FAMILY])
def test_second_adapter_has_the_default_targets_of_the_first(name: str, architecture: str) -> None:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = published(architecture)
        adapted = attach(name, model)
        config: Any = methods()[name].config(model)
        adapted.add_adapter("second", config)
    keys = [key for key, _ in adapted.named_parameters()]
    first = [key for key in keys if "default" in key.split(".")]
    assert first
    assert sorted(key.replace(".second", ".default") for key in keys if "second" in key.split(".")) == sorted(first)


@pytest.mark.parametrize("architecture", WITHOUT_ATTENTION)
def test_sliced_lora_refuses_networks_without_attention(architecture: str) -> None:
    with pytest.raises(ValueError, match=r"has no qkv modules, which this method adapts by default"):
        attach("sliced_lora", published(architecture))


@pytest.mark.parametrize("architecture", WITHOUT_ONE_SEQUENCE)
def test_vpt_refuses_networks_without_one_sequence_of_tokens(architecture: str) -> None:
    blocks = {"target_modules": r"(layers\.\d+\.blocks|stages\.\d+\.blocks|layer\d+)\.\d+"}
    for targets in ({}, blocks):
        with pytest.raises(
            ValueError, match=r"(Swin.* attends within windows of fixed size|has no sequence of tokens): take"
        ):
            attach("vpt", published(architecture), **targets)


@pytest.mark.parametrize(("name", "architecture"), CASES)
def test_every_target_gets_a_gradient(name: str, architecture: str) -> None:
    adapted = attach(name, small(architecture), **RANDOM[name])
    adapted(images()).square().sum().backward()
    trainable = {key: parameter for key, parameter in adapted.named_parameters() if parameter.requires_grad}
    still = [key for key, p in trainable.items() if p.grad is None or not p.grad.abs().max() > 1e-9]
    assert not still, f"no gradient at {still}"


@pytest.mark.parametrize(("name", "architecture"), CASES)
def test_adapted_model_is_the_base_model_again_without_its_adapter(name: str, architecture: str) -> None:
    model, x = small(architecture), images()
    with torch.no_grad():
        before = model(x)
        adapted = attach(name, model, **RANDOM[name]).eval()
        assert not torch.allclose(adapted(x), before, atol=1e-3) or name == "ln_tuning"
        with adapted.disable_adapter():
            assert torch.equal(adapted(x), before)


@pytest.mark.parametrize("architecture", ["beit_base_patch16_224", "eva02_tiny_patch14_224", "swinv2_tiny_window8_256"])
def test_a_projection_whose_weight_is_read_trains_with_ours_and_would_not_with_pefts(architecture: str) -> None:
    """These attention modules read `qkv.weight` and never call `qkv`: what the test above would notice."""
    theirs = peft.get_peft_model(small(architecture), peft.LoraConfig(target_modules=["qkv"], init_lora_weights=False))
    ours = attach("sliced_lora", small(architecture), init_weights=False, modules_to_save=[])
    for adapted in (theirs, ours):
        adapted(images()).square().sum().requires_grad_().backward()
    for adapted, trains in ((theirs, False), (ours, True)):
        found = [p.grad is not None for n, p in adapted.named_parameters() if ".qkv." in n and p.requires_grad]
        assert found
        assert all(gradient is trains for gradient in found)
