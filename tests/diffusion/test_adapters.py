"""Adapters of every method on small denoisers of every kind: attach, train, save, load, merge, take off."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders import PeftAdapterMixin
from peft import PeftModel, VeraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

import diffusion_peft as dp
from peft_kernels.loading import load_adapter
from peft_kernels.peft_own import fill
from tests.kernels.saved_adapters import structure

from .denoiser_methods import IDENTITY, METHODS, SMALL, configured, move, refuses
from .true_configs import predict, small

KINDS = ("sd15", "sd3", "flux", "dit", "pixart")
CASES = [(kind, name) for kind in KINDS for name in METHODS if not refuses(name, kind)]
WITHOUT_MERGE = {"adapter_plus"}
# A bias of all keys adds the same to every logit of a query, and the query of SD3's last text stream is not read.
WITHOUT_EFFECT = ("to_k.bitfit_", "to_k.ssf_adapter.default.shift", "to_k.difffit_", "attn.add_q_proj.")


@cache
def base_outputs(kind: str) -> Tensor:
    with torch.no_grad():
        return predict(kind, small(kind))


def adapted(kind: str, name: str, **fields: Any) -> Any:
    return dp.add_adapter(small(kind), configured(name, **SMALL.get(name, {}), **fields)).eval()


def outputs(kind: str, model: nn.Module) -> Tensor:
    with torch.no_grad():
        return predict(kind, model)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_adapter_starts_at_the_base_model_and_trains_everywhere(kind: str, name: str) -> None:
    model = adapted(kind, name, **IDENTITY.get(name, {}))
    torch.testing.assert_close(outputs(kind, model), base_outputs(kind), rtol=0, atol=2e-6)
    move(model)
    predict(kind, model).square().sum().backward()
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert all(".default" in key for key in trained)
    still = [key for key, p in trained.items() if p.grad is None or not p.grad.abs().max() > 1e-9]
    assert not [key for key in still if not any(part in key for part in WITHOUT_EFFECT)]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_saved_adapter_gives_the_same_outputs_on_a_fresh_model_and_merges(kind: str, name: str, tmp_path: Path) -> None:
    model = adapted(kind, name)
    move(model)
    expected = outputs(kind, model)
    assert (expected - base_outputs(kind)).abs().max() > 1e-3
    dp.save_adapter(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    loaded: Any = dp.load_adapter(small(kind), tmp_path, adapter_name="mine")
    torch.testing.assert_close(outputs(kind, loaded), expected, rtol=0, atol=1e-6)
    assert not any(parameter.requires_grad for key, parameter in loaded.named_parameters() if ".mine" in key)
    if name not in WITHOUT_MERGE:
        for layer in list(loaded.modules()):
            if isinstance(layer, BaseTunerLayer):
                layer.merge()
        torch.testing.assert_close(outputs(kind, loaded), expected, rtol=1e-4, atol=2e-5)


def test_vera_runs_in_a_peft_model_and_is_refused_without(tmp_path: Path) -> None:
    """Its projections are shared by all layers and belong to PEFT's wrapper, which a bare model has not."""
    wrapped: Any = get_peft_model(small("dit"), fill(small("dit"), VeraConfig(r=4)))  # type: ignore[arg-type]
    move(wrapped)
    expected = outputs("dit", wrapped.eval())
    dp.save_adapter(wrapped, tmp_path)
    torch.testing.assert_close(outputs("dit", load_adapter(small("dit"), tmp_path)), expected, rtol=0, atol=1e-6)
    plain = small("dit")
    before = structure(plain)
    for attach in (lambda: dp.add_adapter(plain, VeraConfig(r=4)), lambda: dp.load_adapter(plain, tmp_path)):
        with pytest.raises(ValueError, match=r"VERA because it uses shared state .* use `get_peft_model` instead"):
            attach()
        assert structure(plain) == before


@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if case[0] in ("sd15", "dit")])
def test_disabled_and_deleted_the_model_is_the_base_again(kind: str, name: str) -> None:
    model, plain = adapted(kind, name), small(kind)
    move(model)
    trained = outputs(kind, model)
    dp.disable_adapters(model)
    assert torch.equal(outputs(kind, model), base_outputs(kind))
    dp.enable_adapters(model)
    assert torch.equal(outputs(kind, model), trained)
    dp.delete_adapters(model, "default")
    model._hf_peft_config_loaded = plain._hf_peft_config_loaded = False  # diffusers' flag, of the class at first
    plain.requires_grad_(False)  # the base stays frozen
    assert structure(model) == structure(plain)


def test_file_is_pefts_own(tmp_path: Path) -> None:
    model = adapted("dit", "snell")
    move(model)
    dp.save_adapter(model, tmp_path / "bare")
    wrapped = PeftModel.from_pretrained(small("dit"), tmp_path / "bare").eval()
    torch.testing.assert_close(outputs("dit", wrapped), outputs("dit", model), rtol=0, atol=1e-6)
    dp.save_adapter(wrapped, tmp_path / "wrapped")
    loaded = dp.load_adapter(small("dit"), tmp_path / "wrapped")
    torch.testing.assert_close(outputs("dit", loaded), outputs("dit", model), rtol=0, atol=1e-6)


def test_saving_replaces_the_adapter_and_leaves_other_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    for name in ("lora", "bitfit"):
        model = adapted("dit", name)
        dp.save_adapter(model, tmp_path)
    assert dp.load_adapter(small("dit"), tmp_path).peft_config["default"].peft_type.value == "BITFIT"  # type: ignore[index, union-attr]
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert len(list(tmp_path.iterdir())) == 3


def test_diffusers_own_calls_work_on_what_was_added(tmp_path: Path) -> None:
    model = adapted("sd15", "lora")
    assert issubclass(type(model), PeftAdapterMixin)
    move(model)
    trained = outputs("sd15", model)
    model.disable_adapters()
    assert torch.equal(outputs("sd15", model), base_outputs("sd15"))
    model.enable_adapters()
    model.set_adapters("default", 0.0)
    torch.testing.assert_close(outputs("sd15", model), base_outputs("sd15"), rtol=0, atol=1e-6)
    dp.save_adapter(model, tmp_path)
    other = small("sd15")
    other.add_adapter(configured("bitfit", target_modules=["ff.net.2"]), "mine")  # diffusers' own
    dp.load_adapter(other, tmp_path, "theirs")
    assert torch.equal(outputs("sd15", other), trained)
    assert other.active_adapters() == ["theirs"]


def test_adapter_of_a_half_precision_model_is_held_in_float32() -> None:
    model = dp.add_adapter(small("dit").to(torch.bfloat16), configured("lora"))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize(("dtype", "held"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)], ids=str)
def test_loaded_adapter_has_the_type_of_an_attached_one(dtype: torch.dtype, held: torch.dtype, tmp_path: Path) -> None:
    model = adapted("dit", "dora")
    move(model)
    dp.save_adapter(model, tmp_path)
    loaded = dp.load_adapter(small("dit").to(dtype), tmp_path, "mine", is_trainable=True)
    trained = {key.replace(".mine", ".default"): p for key, p in loaded.named_parameters() if p.requires_grad}
    expected = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert trained.keys() == expected.keys()
    assert {parameter.dtype for parameter in trained.values()} == {held}
    assert all(torch.equal(trained[key], expected[key].to(held)) for key in expected)
