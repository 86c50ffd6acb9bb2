"""transformers' `TimmWrapperForImageClassification`, which holds the timm model as `timm_model`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

import vision_peft  # noqa: F401 (registers the methods)
from peft_kernels.adapter_files import AdapterError
from peft_kernels.loading import load_adapter
from peft_kernels.registry import methods
from tests.kernels.saved_adapters import GENERAL

SMALL: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2}
START: dict[str, dict[str, Any]] = {name: {"init_weights": False} for name in GENERAL} | {
    "lora": {"init_lora_weights": False},
    "dora": {"init_lora_weights": False},
    "spt": {"budget": 0.2, "budget_rule": "at_most", "scoring_mode": "eval"},
    "ln_tuning": {},
}


def bare() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, **SMALL).eval()


def wrapped() -> Any:
    config = TimmWrapperConfig(architecture="vit_tiny_patch16_224", num_labels=3, model_args=SMALL)  # type: ignore[call-arg]
    model = TimmWrapperForImageClassification(config)
    model.timm_model.load_state_dict(bare().state_dict())
    return model.eval()


def images() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def attach(name: str, model: nn.Module) -> PeftModel:
    torch.manual_seed(2)
    method = methods()[name]
    config = method.config(model, **START[name])
    if method.choose:
        config = method.choose(config, model, [images()], loss)
    adapted = method.attach(model, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return adapted.eval()


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    output = model(batch)
    return getattr(output, "logits", output).square().mean()


def trainable(model: nn.Module) -> dict[str, int]:
    """Trainable parameters by the names they have in a bare timm model."""
    return {n.replace(".timm_model.", "."): p.numel() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", GENERAL)
def test_default_targets_and_head_are_those_of_the_bare_model(name: str) -> None:
    inside, alone = attach(name, wrapped()), attach(name, bare())
    assert trainable(inside) == trainable(alone)
    assert any(".head." in key for key in trainable(inside))
    with torch.no_grad():
        torch.testing.assert_close(inside(images()).logits, alone(images()), rtol=1e-4, atol=1e-5)
        with inside.disable_adapter():
            torch.testing.assert_close(inside(images()).logits, bare()(images()))


@pytest.mark.parametrize("name", GENERAL)
def test_loss_reaches_every_trainable_parameter(name: str) -> None:
    model = attach(name, wrapped())
    model(pixel_values=images(), labels=torch.tensor([0, 2])).loss.backward()
    assert not [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("name", GENERAL)
def test_saved_and_loaded_into_a_wrapper_again(name: str, tmp_path: Path) -> None:
    model = attach(name, wrapped()).requires_grad_(False)
    model.save_pretrained(str(tmp_path))
    for load in (PeftModel.from_pretrained, load_adapter):
        loaded: Any = load(wrapped(), tmp_path)
        torch.testing.assert_close(loaded.eval()(images()).logits, model(images()).logits)


@pytest.mark.parametrize("name", GENERAL)
@pytest.mark.parametrize("into_bare", [True, False])
def test_adapter_of_the_other_form_is_refused_and_says_where_it_belongs(
    name: str, into_bare: bool, tmp_path: Path
) -> None:
    attach(name, wrapped() if into_bare else bare()).save_pretrained(str(tmp_path))
    model = bare() if into_bare else wrapped()
    before = {key: type(module) for key, module in model.named_modules()}
    where = "load it into the wrapper" if into_bare else r"load it into `model\.timm_model`"
    with pytest.raises(AdapterError, match=where):
        load_adapter(model, tmp_path)
    assert {key: type(module) for key, module in model.named_modules()} == before


@pytest.mark.parametrize("name", GENERAL)
def test_adapter_of_a_bare_model_loads_into_the_one_in_the_wrapper(name: str, tmp_path: Path) -> None:
    alone = attach(name, bare()).requires_grad_(False)
    alone.save_pretrained(str(tmp_path))
    model = wrapped()
    model.timm_model = load_adapter(model.timm_model, tmp_path)
    torch.testing.assert_close(model.eval()(images()).logits, alone(images()))


@pytest.mark.parametrize("name", ["snell", "ssf", "bitfit", "full", "sliced_lora", "linear_probe"])
def test_merged_inside_the_wrapper_gives_a_bare_model(name: str) -> None:
    model = attach(name, wrapped()).requires_grad_(False)
    expected = model(images()).logits
    plain = model.merge_and_unload().timm_model
    assert plain.state_dict().keys() == bare().state_dict().keys()
    fresh = bare()
    fresh.load_state_dict(plain.state_dict())
    torch.testing.assert_close(fresh(images()), expected, rtol=1e-4, atol=1e-5)
