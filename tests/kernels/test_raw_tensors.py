"""Raw parameters (class token, position embedding, separate biases) trained in copies, by every way into a model."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from torch import Tensor, nn

import vision_peft as vp

RAW = ["cls_token", "pos_embed"]
SMALL: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2}


def base(dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    model: Any = timm.create_model("vit_tiny_patch16_224", num_classes=3, **SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval().to(dtype)


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)).to(dtype)


def config(**fields: Any) -> vp.SsfConfig:
    return vp.SsfConfig(target_modules=["fc1"], **{"modules_to_save": RAW, "init_weights": False, **fields})


def adapted(*names: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model with adapters that start at random, all active."""
    model: Any = get_peft_model(base(dtype), config(), names[0] if names else "default")
    for name in names[1:]:
        model.add_adapter(name, config())
    if names[1:]:
        model.base_model.set_adapter(list(names))
    return model.eval()


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {key: p for key, p in model.named_parameters() if ".adapted_tensors." in key}


def forward_of_parts(model: Any, x: Tensor) -> Tensor:
    return model.forward_head(model.forward_features(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("names", [("one",), ("one", "two")])
def test_called_by_its_parts_the_model_gives_what_it_gives_as_a_whole(
    names: tuple[str, ...], dtype: torch.dtype
) -> None:
    model, x = adapted(*names, dtype=dtype), images(dtype)
    found = {}
    for call in (model, lambda x: forward_of_parts(model, x)):
        model.zero_grad(set_to_none=True)
        y = call(x)
        y.square().sum().backward()
        found[call is model] = y, {key: p.grad for key, p in trained(model).items()}
    assert torch.equal(found[False][0], found[True][0])
    assert len(found[False][1]) == len(RAW) * len(names)
    for key, gradient in found[False][1].items():
        assert gradient is not None, f"no gradient at {key}"
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(gradient, found[True][1][key])


def test_intermediate_features_are_the_adapted_ones() -> None:
    model, plain, x = adapted("one", "two"), base(), images()
    with torch.no_grad():
        final, _ = model.forward_intermediates(x)
        assert torch.equal(final, model.forward_features(x))
        assert not torch.allclose(final, plain.forward_features(x), atol=1e-2)
        with model.disable_adapter():
            assert torch.equal(model.forward_features(x), plain.forward_features(x))


def test_part_that_fails_leaves_the_base_parameters() -> None:
    model = adapted("one", "two")
    parameter = model.get_base_model()._parameters["cls_token"]
    with pytest.raises(AssertionError):
        model.forward_features(torch.randn(2, 3, 8, 8))  # another size
    assert model.get_base_model().cls_token is parameter


def test_two_adapters_switch(tmp_path: Path) -> None:
    model, x = adapted("one", "two"), images()
    outputs = {}
    for name in ("one", "two", "one"):
        model.set_adapter(name)
        with torch.no_grad():
            output = model(x)
        assert name not in outputs or torch.equal(outputs[name], output)
        outputs[name] = output
        assert {key.split(".")[-2] for key, p in trained(model).items() if p.requires_grad} == {name}
    assert not torch.allclose(outputs["one"], outputs["two"], atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_on_a_fresh_base_gives_the_same_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    model, x = adapted(dtype=dtype).requires_grad_(False), images(dtype)
    model.save_pretrained(tmp_path)
    for loaded in (PeftModel.from_pretrained(base(dtype), tmp_path), vp.load_adapter(base(dtype), tmp_path)):
        assert torch.equal(loaded.eval()(x), model(x))
        assert torch.equal(forward_of_parts(loaded, x), model(x))


def test_half_precision_base_trains_float32_copies_and_merges() -> None:
    model, x = adapted(dtype=torch.bfloat16), images(torch.bfloat16)
    assert all(parameter.dtype == torch.float32 for parameter in trained(model).values())
    with torch.no_grad():
        before = model(x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of rounding
            plain = model.merge_and_unload()
        assert plain.cls_token.dtype == torch.bfloat16
        torch.testing.assert_close(plain(x), before, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("names", [("one",), ("one", "two")])
def test_deep_copy_shares_nothing(names: tuple[str, ...]) -> None:
    model, x = adapted(*names), images()
    with torch.no_grad():
        before = model(x)
        twin = copy.deepcopy(model)
        for parameter in trained(twin).values():
            parameter.add_(torch.randn_like(parameter))
        assert torch.equal(model(x), before)
        assert torch.equal(forward_of_parts(model, x), before)
        assert not torch.allclose(twin(x), before, atol=1e-2)
        assert torch.equal(forward_of_parts(twin, x), twin(x))


def test_injected_in_a_plain_model_and_taken_out_again() -> None:
    model: Any = inject_adapter_in_model(config(), base())
    x, plain = images(), base()
    with torch.no_grad():
        assert torch.equal(forward_of_parts(model, x), model(x))
        assert not torch.allclose(model(x), plain(x), atol=1e-2)
    child = model.adapted_tensors
    child.detach()
    assert not [key for key in model.__dict__ if key not in plain.__dict__ and key != "peft_config"]
    assert "adapted_tensors" not in dict(model.named_children())


def test_unmatched_name_names_the_nearest() -> None:
    model = base()
    before = {key: type(module) for key, module in model.named_modules()}
    with pytest.raises(ValueError, match=r"'cls_tokn', which is neither .* \(did you mean 'cls_token'\?\)"):
        get_peft_model(model, config(modules_to_save=["cls_tokn"]))
    assert {key: type(module) for key, module in model.named_modules()} == before


def test_biases_that_attention_owns_train_through_the_parts() -> None:
    torch.manual_seed(0)
    model: Any = get_peft_model(timm.create_model("beit_base_patch16_224", num_classes=3, **SMALL), vp.BitFitConfig())
    forward_of_parts(model, images()).square().sum().backward()
    biases = {key: p for key, p in trained(model).items() if key.endswith(("q_bias", "v_bias"))}
    assert len(biases) == 2
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in biases.values())
