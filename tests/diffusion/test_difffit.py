"""DiffFit on small denoisers of every family: starts as the base model, switches, merges, saves, leaves nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

import diffusion_peft as dp
from peft_kernels.loading import load_adapter

from .difffit_models import DENOISERS, MODELS, attach, base, everything, gradients, move, run


def trained(name: str, **fields: Any) -> PeftModel:
    model = attach(base(name), everything(name, **fields))
    move(model)
    return model.eval()


def bits(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_bits(model: Any, expected: dict[str, Tensor]) -> bool:
    found = model.state_dict()
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("name", MODELS)
def test_starts_as_the_base_model_bit_for_bit(name: str) -> None:
    model = attach(base(name), everything(name))
    assert torch.equal(run(name, model), run(name, base(name)))


@pytest.mark.parametrize("name", MODELS)
def test_every_trainable_parameter_is_the_adapters_and_gets_a_gradient(name: str) -> None:
    model = trained(name)
    found = gradients(model, lambda: run(name, model))
    assert found
    assert all(".difffit_adapter.default." in key for key in found)
    # What the prompt asks in SD3's last block goes nowhere: its gradient is there, and 0.
    still = [key for key, gradient in found.items() if not gradient.abs().sum() > 0]
    assert [key for key in still if ".transformer_blocks.1.attn.add_q_proj." not in key] == []
    assert bool(still) == (name == "sd3")


@pytest.mark.parametrize("name", MODELS)
def test_merged_model_is_plain_and_gives_the_same(name: str) -> None:
    model = trained(name)
    expected = run(name, model)
    assert (expected - run(name, base(name))).abs().max() > 1e-2
    plain = model.merge_and_unload()  # type: ignore[operator]
    assert plain.state_dict().keys() == base(name).state_dict().keys()
    torch.testing.assert_close(run(name, plain), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_unmerged_model_has_the_bits_of_before(name: str) -> None:
    model = trained(name)
    before, output = bits(model), run(name, model)
    model.merge_adapter()  # type: ignore[operator]
    model.unmerge_adapter()  # type: ignore[operator]
    assert same_bits(model, before)
    assert torch.equal(run(name, model), output)


@pytest.mark.parametrize("name", MODELS)
def test_disabled_and_unloaded_it_is_the_base_model(name: str) -> None:
    model, expected = trained(name), run(name, base(name))
    output = run(name, model)
    with model.disable_adapter():
        assert torch.equal(run(name, model), expected)
    assert torch.equal(run(name, model), output)
    plain = model.unload()  # type: ignore[operator]
    assert same_bits(plain, bits(base(name)))
    assert torch.equal(run(name, plain), expected)


@pytest.mark.parametrize("name", MODELS)
def test_two_adapters_switch_and_go_without_residue(name: str) -> None:
    model = trained(name)
    first = run(name, model)
    model.add_adapter("second", everything(name, gamma_sites=["attn_out", "ffn_out"], train_norm=False))
    move(model, "second")
    model.set_adapter("second")
    second = run(name, model)
    assert (second - first).abs().max() > 1e-2
    model.set_adapter("default")
    assert torch.equal(run(name, model), first)
    model.base_model.set_adapter(["default", "second"])  # type: ignore[operator]
    both = run(name, model)
    assert min((both - one).abs().max() for one in (first, second)) > 1e-2
    model.set_adapter("default")
    model.delete_adapter("second")
    assert torch.equal(run(name, model), first)
    assert not [key for key, _ in model.named_parameters() if "second" in key.split(".")]


@pytest.mark.parametrize("name", DENOISERS)
def test_weights_interpolate_between_base_and_trained(name: str, tmp_path: Path) -> None:
    model, expected = base(name), run(name, base(name))
    dp.add_adapter(model, everything(name), "one")
    move(model, "one")
    outputs = {}
    for weight in (0.0, 0.5, 1.0):
        dp.set_adapters(model, "one", weight)
        outputs[weight] = run(name, model)
    assert torch.equal(outputs[0.0], expected)
    half = attach(base(name), everything(name))
    half.load_state_dict(
        {f"base_model.model.{k}".replace(".one.", ".default."): t for k, t in model.state_dict().items()}
    )
    for layer in half.modules():
        if hasattr(layer, "set_scale"):
            layer.set_scale("default", 0.5)  # type: ignore[operator]
    torch.testing.assert_close(run(name, half), outputs[0.5])
    plain = half.merge_and_unload()  # type: ignore[operator]
    torch.testing.assert_close(run(name, plain), outputs[0.5], rtol=1e-5, atol=1e-5)
    dp.disable_adapters(model)
    assert torch.equal(run(name, model), expected)
    dp.enable_adapters(model)
    dp.save_adapter(model, tmp_path, "one")
    other = base(name)
    dp.load_adapter(other, tmp_path)
    assert torch.equal(run(name, other.eval()), outputs[1.0])
    dp.delete_adapters(model, "one")
    assert torch.equal(run(name, model), expected)


@pytest.mark.parametrize("name", MODELS)
def test_saved_adapter_loads_into_a_fresh_base(name: str, tmp_path: Path) -> None:
    model = trained(name)
    model.save_pretrained(str(tmp_path))
    entries = sum(p.numel() for p in model.parameters() if p.requires_grad)
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    header = int.from_bytes((tmp_path / "adapter_model.safetensors").read_bytes()[:8], "little")
    assert size == 4 * entries + 8 + header
    for load in (load_adapter, PeftModel.from_pretrained):
        assert torch.equal(run(name, load(base(name), str(tmp_path)).eval()), run(name, model))


@pytest.mark.parametrize("name", ["dit", "sd15"])
def test_gradients_are_those_of_the_merged_tensors(name: str) -> None:
    """In float64, against finite differences of one entry of every kind."""
    model = trained(name).double()

    def forward() -> Tensor:
        return run(name, model, torch.float64)

    found = gradients(model, forward)
    y = forward()
    probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(5)).double()
    parameters = dict(model.named_parameters())
    kinds: dict[str, str] = {}
    for key in found:
        kinds.setdefault(key.partition("adapter.default.")[2], key)
    assert len(kinds) >= 8
    for key in kinds.values():
        place = int(found[key].abs().argmax())
        values = []
        for step in (1e-5, -1e-5):
            moved = copy.deepcopy(parameters[key].data)
            parameters[key].data.view(-1)[place] += step
            with torch.no_grad():
                values.append(float((forward() * probe).sum()))
            parameters[key].data.copy_(moved)
        slope = (values[0] - values[1]) / 2e-5
        assert slope == pytest.approx(float(found[key].view(-1)[place]), rel=1e-5, abs=1e-7), key


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_fused_projections_which_it_does_not_reach_are_refused(name: str) -> None:
    model = base(name)
    dp.add_adapter(model, dp.DiffFitConfig())
    move(model)
    with torch.no_grad():
        expected = run(name, model)
        model.fuse_qkv_projections()
        with pytest.raises(RuntimeError, match="call unfuse_qkv_projections"):
            run(name, model)
        model.unfuse_qkv_projections()
        assert torch.equal(run(name, model), expected)
    again = base(name)
    again.fuse_qkv_projections()
    with pytest.raises(ValueError, match=r"fused: call unfuse_qkv_projections"):
        dp.add_adapter(again, dp.DiffFitConfig())
