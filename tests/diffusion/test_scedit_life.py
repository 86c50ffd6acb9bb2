"""SCEdit's tuners in other forms of computing, saved, loaded, unloaded, beside LoRA, and what they refuse."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

import diffusion_peft as dp
from peft_kernels import loading
from peft_kernels.skips import long_skips

from ..kernels.saved_adapters import structure
from ..kernels.tiny_unet import move, run, unet
from .true_configs import small


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def with_tuner(name: str = "one", **fields: Any) -> Any:
    model = unet()
    dp.add_adapter(model, dp.SceditConfig(**fields), name)
    move(model, name)
    return model.eval()


# --- forms of computing ----------------------------------------------------------------------------------------------
def gradients(model: Any, **kwargs: Any) -> dict[str, Tensor]:
    torch.manual_seed(5)
    dtype = next(model.parameters()).dtype
    inputs = torch.randn(2, 4, 8, 8, dtype=dtype), torch.tensor([3, 7]), torch.randn(2, 5, 12, dtype=dtype)
    model(*inputs, **kwargs).sample.square().sum().backward()
    return {name: p.grad for name, p in trained(model).items() if p.grad is not None}


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    model = with_tuner().double().train()
    expected = {name: gradient.clone() for name, gradient in gradients(model).items()}
    model.zero_grad()
    model.enable_gradient_checkpointing()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-12, atol=1e-12)


def test_channels_last_stays_and_bfloat16_is_near() -> None:
    model = with_tuner().to(memory_format=torch.channels_last)
    formats = []
    model.up_blocks[1].resnets[1].base_layer.register_forward_pre_hook(
        lambda _, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    latents, text = torch.randn(2, 4, 8, 8).to(memory_format=torch.channels_last), torch.randn(2, 5, 12)
    expected = with_tuner()(latents, torch.tensor([3, 7]), text).sample
    torch.testing.assert_close(model(latents, torch.tensor([3, 7]), text).sample, expected, rtol=1e-4, atol=1e-5)
    assert formats == [True]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(latents, torch.tensor([3, 7]), text).sample
    assert half.isfinite().all()
    assert (half.float() - expected).abs().max() < 2e-2 * expected.abs().max() + 2e-2


def test_a_half_precision_unet_has_tuners_in_float32() -> None:
    model = unet().bfloat16()
    dp.add_adapter(model, dp.SceditConfig())
    assert {p.dtype for p in trained(model).values()} == {torch.float32}
    out = model(torch.randn(1, 4, 8, 8).bfloat16(), torch.tensor([3]), torch.randn(1, 5, 12).bfloat16()).sample
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()


def test_a_decoder_block_compiles_to_one_graph() -> None:
    layer = with_tuner().up_blocks[0].resnets[0]
    x, time = torch.randn(1, 32, 4, 4), torch.randn(1, 32)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, time), layer(x, time))


# --- life on a model -------------------------------------------------------------------------------------------------
def test_saved_and_loaded_gives_the_same_bits(tmp_path: Path) -> None:
    model = with_tuner(down_ratio=0.5, scale=[1.0, 0.5, 2.0, 1.0])
    expected = run(model)
    dp.save_adapter(model, tmp_path, "one")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(t.numel() for t in tensors.values()) == sum(p.numel() for p in trained(model).values())
    assert all(".scedit_adapter." in name for name in tensors)
    loaded = dp.load_adapter(unet(), tmp_path, "two")
    assert torch.equal(run(loaded), expected)


def test_peft_model_saves_and_loads_it_too(tmp_path: Path) -> None:
    model = get_peft_model(unet(), dp.SceditConfig())
    move(model, "default")
    model.save_pretrained(str(tmp_path))
    assert torch.equal(run(PeftModel.from_pretrained(unet(), tmp_path)), run(model))


def test_an_adapter_for_another_unet_is_refused(tmp_path: Path) -> None:
    dp.save_adapter(with_tuner(), tmp_path, "one")
    other, base = small("sd15"), small("sd15")
    with pytest.raises(dp.AdapterError, match=r"is for another UNet: it edits 4 skips of \[16, 8, 8, 8\] channels"):
        dp.load_adapter(other, tmp_path)
    assert [type(m) for m in other.modules()] == [type(m) for m in base.modules()]
    wide = small("sd15", block_out_channels=(8, 16, 16, 32))
    with pytest.raises(ValueError, match=r"skip 0 \(up_blocks.0.resnets.0\) has 32 channels, expected 16"):
        dp.add_adapter(wide, dp.SceditConfig(skip_channels=[skip.channels for skip in long_skips(other)]))


@pytest.mark.parametrize("control", [False, True])
def test_a_load_that_fails_at_its_end_leaves_no_trace(
    control: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise MemoryError("no more")

    dp.save_adapter(with_tuner(control=control, pre_dim_ratio=0.25, pre_out_channels=5), tmp_path, "one")
    monkeypatch.setattr(loading, "write_adapter_state", fail)
    model = unet()
    before = structure(model)
    with pytest.raises(MemoryError):
        dp.load_adapter(model, tmp_path)
    assert structure(model) == before


def test_it_cannot_be_merged_and_unloads_without_a_trace() -> None:
    model = get_peft_model(with_tuner("one", init_weights=False), dp.SceditConfig(), "two")
    with pytest.raises(NotImplementedError, match="cannot be merged: a GELU stands between its layers"):
        model.merge_adapter(["two"])
    model, plain = with_tuner(), unet()
    model.unload_lora()
    assert [(n, type(m)) for n, m in model.named_modules()] == [(n, type(m)) for n, m in plain.named_modules()]
    assert torch.equal(run(model), run(plain))


def test_deleted_disabled_and_copied() -> None:
    model, base = with_tuner(), run(unet())
    expected = run(model)
    twin = copy.deepcopy(model)
    model.disable_adapters()
    assert torch.equal(run(model), base)
    model.enable_adapters()
    assert torch.equal(run(model), expected)
    model.delete_adapters("one")
    assert torch.equal(run(model), base)
    assert torch.equal(run(twin), expected)


def test_beside_lora_on_attention_and_convolutions_of_the_decoder() -> None:
    model = unet()
    lora = LoraConfig(r=2, target_modules=r"up_blocks.*\.(to_q|conv1)", init_lora_weights=False)
    composed = dp.compose(model, {"edit": dp.SceditConfig(), "lora": lora})
    out = composed(torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 5, 12)).sample
    out.square().sum().backward()
    with_gradient = {name.rpartition(".")[0] for name, p in trained(composed).items() if p.grad is not None}
    assert any("conv1.lora" in name for name in with_gradient)
    assert any("scedit" in name for name in with_gradient)


# --- bad input -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "dit"])
def test_networks_without_long_skips_say_so(name: str) -> None:
    model = small("dit") if name == "dit" else timm.create_model(name)
    with pytest.raises(ValueError, match=f"no long skip connections found in {type(model).__name__}"):
        dp.add_adapter(model, dp.SceditConfig())


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"down_ratio": 0.0}, r"down_ratio must be in \(0, 1\]"),
        ({"down_ratio": 0.05}, "leaves no hidden channel of the 16 of skip 0"),
        ({"skip_indices": [4]}, "must lie in 0 to 3"),
        ({"skip_indices": []}, "at least one index"),
        ({"hidden_sizes": [3, 3]}, "one entry for each of the 4 skips"),
        ({"scale": [1.0]}, "one entry for each of the 4 skips"),
        ({"target_modules": ["to_q"]}, "reads no skip that this SceditConfig edits"),
        ({"control": True, "target_modules": r"up_blocks\.0\.resnets\.0"}, "must name 'conv_in' too"),
        ({"dense_kernel": 2}, "dense_kernel must be 1 or 3"),
    ],
)
def test_bad_settings_are_refused_and_the_model_stays(fields: dict[str, Any], match: str) -> None:
    model = unet()
    with pytest.raises(ValueError, match=match):
        dp.add_adapter(model, dp.SceditConfig(**fields))
    assert [(n, type(m)) for n, m in model.named_modules()] == [(n, type(m)) for n, m in unet().named_modules()]
