"""Weights, several adapters, hot swapping, pipelines, and what is refused, on models of diffusers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from peft import get_peft_model
from torch import Tensor, nn

import diffusion_peft as dp
import vision_peft as vp
from tests.kernels.saved_adapters import edit, setting, structure

from .denoiser_methods import METHODS, SMALL, configured, move
from .true_configs import predict, small

WEIGHED = [name for name in METHODS if name not in ("oft", "ia3", "ln_tuning")]


def outputs(model: nn.Module, kind: str = "dit", **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return predict(kind, model, **kwargs)


def trained(name: str = "lora", kind: str = "dit", seed: int = 2, **fields: Any) -> Any:
    model = dp.add_adapter(small(kind), configured(name, **SMALL.get(name, {}), **fields), "one").eval()
    move(model, seed)
    return model


@pytest.mark.parametrize("name", WEIGHED)
def test_weight_0_is_the_base_model_and_1_the_adapter(name: str) -> None:
    model, base = trained(name), outputs(small("dit"))
    whole = outputs(model)
    found = {}
    for weight in (0.0, 0.5, 1.0):
        dp.set_adapters(model, "one", weight)
        found[weight] = outputs(model)
    torch.testing.assert_close(found[0.0], base, rtol=0, atol=1e-6)
    torch.testing.assert_close(found[1.0], whole, rtol=0, atol=1e-6)
    assert (found[0.5] - base).abs().max() > 1e-4
    assert (found[0.5] - whole).abs().max() > 1e-4


# PEFT's SHiRA lacks what diffusers calls, and its DoRA keeps the trained magnitudes at scale 0.
@pytest.mark.parametrize("name", [name for name in WEIGHED if name not in ("shira", "dora")])
def test_scale_of_a_call_is_the_weight_for_that_call_alone(name: str) -> None:
    model, base = trained(name, "sd15"), outputs(small("sd15"), "sd15")
    whole = outputs(model, "sd15")
    none, half = (outputs(model, "sd15", cross_attention_kwargs={"scale": scale}) for scale in (0.0, 0.5))
    torch.testing.assert_close(outputs(model, "sd15"), whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(none, base, rtol=0, atol=1e-6)
    dp.set_adapters(model, "one", 0.5)
    torch.testing.assert_close(outputs(model, "sd15"), half, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["oft", "ia3"])
def test_methods_of_peft_without_a_strength_run_whole_or_not_at_all(name: str) -> None:
    model, base = trained(name), outputs(small("dit"))
    whole = outputs(model)
    with pytest.raises(ValueError, match=r"knows no weight but 0 and 1; found 0.5"):
        dp.set_adapters(model, "one", 0.5)
    assert torch.equal(outputs(model), whole)
    dp.set_adapters(model, "one", 0)
    assert torch.equal(outputs(model), base)
    dp.set_adapters(model, "one")
    assert torch.equal(outputs(model), whole)


def test_several_adapters_of_several_methods() -> None:
    model = trained("lora", target_modules=["to_q"])
    first = outputs(model)
    dp.add_adapter(model, vp.BitFitConfig(target_modules=["ff.net.2"]), "two")
    move(model, 3)
    second = outputs(model)
    dp.set_adapters(model, ["one", "two"], [1.0, 0.0])
    torch.testing.assert_close(outputs(model), first, rtol=0, atol=1e-6)
    dp.set_adapters(model, ["one", "two"])
    both = outputs(model)
    assert all((both - one).abs().max() > 1e-4 for one in (first, second))
    dp.delete_adapters(model, "two")
    torch.testing.assert_close(outputs(model), first, rtol=0, atol=1e-6)
    assert list(model.peft_config) == ["one"]


@pytest.mark.parametrize("kind", ["dit", "sd15"])
def test_hot_swapped_adapter_has_the_outputs_of_the_new_one_in_the_same_parameters(kind: str, tmp_path: Path) -> None:
    for seed in (3, 4):
        dp.save_adapter(trained("snell", kind, seed), tmp_path / str(seed), "one")
    model: Any = dp.load_adapter(small(kind), tmp_path / "3")
    places = {key: parameter.data_ptr() for key, parameter in model.named_parameters()}
    dp.hotswap_adapter(model, tmp_path / "4")
    torch.testing.assert_close(outputs(model, kind), outputs(trained("snell", kind, 4), kind), rtol=0, atol=1e-6)
    assert places == {key: parameter.data_ptr() for key, parameter in model.named_parameters()}


def test_pipeline_stands_for_its_denoiser(tmp_path: Path) -> None:
    pipeline = SimpleNamespace(vae=nn.Linear(1, 1), transformer=small("dit"))
    assert dp.add_adapter(pipeline, configured("lora")) is pipeline.transformer
    dp.save_adapter(pipeline, tmp_path)
    other = SimpleNamespace(unet=small("dit"))
    dp.load_adapter(other, tmp_path)
    torch.testing.assert_close(outputs(other.unet), outputs(pipeline.transformer))


def test_pipeline_without_denoiser_is_refused(tmp_path: Path) -> None:
    pipeline = SimpleNamespace(components={"vae": nn.Linear(1, 1), "scheduler": None})
    for call in (lambda: dp.add_adapter(pipeline, configured("lora")), lambda: dp.load_adapter(pipeline, tmp_path)):
        with pytest.raises(TypeError, match=r"has no unet and no transformer to adapt; its models are vae"):
            call()


def test_unconditional_unet_is_adapted_too(tmp_path: Path) -> None:
    def base() -> UNet2DModel:
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        ).eval()  # type: ignore[return-value]

    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for name in ("lora", "snell", "ssf", "adapter_plus", "ln_tuning"):
        model = dp.add_adapter(base(), configured(name)).eval()
        move(model)
        dp.save_adapter(model, tmp_path / name)
        loaded: Any = dp.load_adapter(base(), tmp_path / name)
        with torch.no_grad():
            torch.testing.assert_close(loaded(x, 3).sample, model(x, 3).sample, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "fields", "kind", "reason"),
    [
        ("lora", {}, "sd15", "does not fit UNet2DConditionModel: .*trained on 'DiTTransformer2DModel'"),
        ("lora", {"target_modules": ["to_q"]}, "pixart", "is for another model|expected tensors are missing"),
        ("bitfit", {}, "sd3", "does not fit SD3Transformer2DModel: .*trained on 'DiTTransformer2DModel'"),
    ],
)
def test_adapter_for_another_architecture_changes_nothing(
    name: str, fields: dict[str, Any], kind: str, reason: str, tmp_path: Path
) -> None:
    dp.save_adapter(trained(name, **fields), tmp_path, "one")
    model = small(kind)
    before = structure(model)
    with pytest.raises(dp.AdapterError, match=reason):
        dp.load_adapter(model, tmp_path)
    assert structure(model) == before


def test_damaged_files_change_nothing(tmp_path: Path) -> None:
    model = trained("snell")
    before = structure(model)
    for reason, damage in {
        "NaN or infinity": lambda folder: edit(folder, lambda tensors: next(iter(tensors.values())).fill_(torch.nan)),
        "tensors are missing": lambda folder: edit(folder, lambda tensors: tensors.popitem()),
        r"no field 'rr' \(did you mean 'r'": lambda folder: setting(folder, rr=3),
    }.items():
        dp.save_adapter(model, tmp_path, "one")
        damage(tmp_path)
        with pytest.raises(dp.AdapterError, match=reason):
            dp.load_adapter(model, tmp_path, "two")
    with pytest.raises(dp.AdapterError, match=r"called 'one' already"):
        dp.load_adapter(model, tmp_path, "one")
    with pytest.raises(dp.AdapterError, match=r"no adapter called 'onne' \(did you mean 'one'"):
        dp.save_adapter(model, tmp_path, "onne")
    assert structure(model) == before


def test_failed_attachment_changes_nothing() -> None:
    model = trained("lora", target_modules=["to_q"])
    before = structure(model)
    for name, config, reason in (
        ("one", configured("lora"), r"called 'one' already"),
        ("two", configured("lora", target_modules=["to_w"]), r"not found in the base model"),
        ("two", configured("snell", target_modules=["to_q"]), r"already carries an adapter of another method"),
    ):
        with pytest.raises(ValueError, match=reason):
            dp.add_adapter(model, config, name)
    with pytest.raises(ValueError, match=r"1 adapters need as many weights or one for all; found 2"):
        dp.set_adapters(model, "one", [1.0, 0.5])
    for weights, reason in (
        (float("nan"), "must be finite; found nan"),
        ("strong", "must be a number, or one for each adapter; found 'strong'"),
        (None, "found None"),
    ):
        with pytest.raises(ValueError, match=reason):
            dp.set_adapters(model, "one", weights)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'one' is named twice"):
        dp.set_adapters(model, ["one", "one"], [0.5, 1.0])
    with pytest.raises(dp.AdapterError, match=r"no adapter called 'two'"):
        dp.set_adapters(model, ["one", "two"])
    for bad in ("a.b", ""):
        with pytest.raises(ValueError, match=rf"name must be a text without dots; found '{bad}'"):
            dp.add_adapter(model, configured("lora"), bad)
    with pytest.raises(TypeError, match=r"expected a method's configuration, .*; found \{'r': 8\}"):
        dp.add_adapter(model, {"r": 8}, "two")  # type: ignore[arg-type]
    assert structure(model) == before


def test_weights_may_be_numbers_of_numpy_and_torch() -> None:
    model = trained()
    dp.set_adapters(model, "one", 0.5)
    half = outputs(model)
    for weight in (np.float32(0.5), torch.tensor(0.5), np.array([0.5])):
        dp.set_adapters(model, "one", 1.0)
        dp.set_adapters(model, "one", weight)  # type: ignore[arg-type]
        assert torch.equal(outputs(model), half)


def test_after_disabling_an_adapter_that_is_chosen_or_new_runs_in_every_layer() -> None:
    model = trained(target_modules=["to_q"])
    one = outputs(model)
    dp.disable_adapters(model)
    dp.set_adapters(model, "one")
    assert torch.equal(outputs(model), one)
    dp.disable_adapters(model)
    dp.add_adapter(model, configured("lora", target_modules=["to_q", "to_v"]), "two")
    predict("dit", model).square().sum().backward()
    trained_parts = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert any("to_q" in key for key in trained_parts)
    assert all(p.grad is not None for p in trained_parts.values())


def test_adapters_that_took_a_part_of_the_base_weights_with_them_warn() -> None:
    model = trained(init_lora_weights="olora")
    for without in (
        lambda: dp.set_adapters(model, "one", 0.5),
        lambda: dp.disable_adapters(model),
        lambda: dp.delete_adapters(model, "one"),
    ):
        with pytest.warns(UserWarning, match=r"'one' holds a part of the base weights .*'olora'"):
            without()


def test_enabling_leaves_a_loaded_adapter_frozen(tmp_path: Path) -> None:
    dp.save_adapter(trained("bitfit"), tmp_path, "one")
    model = dp.load_adapter(small("dit"), tmp_path)
    dp.disable_adapters(model)
    dp.enable_adapters(model)
    assert not any(p.requires_grad for name, p in model.named_parameters() if ".default" in name)


def test_the_last_adapter_of_a_peft_model_stays_and_the_error_tells_the_way_back() -> None:
    model = get_peft_model(small("dit"), configured("bitfit"))
    before = set(model.state_dict())
    with pytest.raises(ValueError, match="`unload\\(\\)` gives the plain model back"):
        dp.delete_adapters(model, "default")
    assert set(model.state_dict()) == before
    model.add_adapter("other", configured("bitfit"))
    dp.delete_adapters(model, "default")
    assert set(model.peft_config) == {"other"}
