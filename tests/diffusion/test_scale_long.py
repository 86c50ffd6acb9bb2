"""ScaleLong on UNets: which factor each skip gets, where a gate starts, and SCEdit beside it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import diffusion_peft as dp
from diffusion_peft.methods.scale_long import SkipGate

from ..kernels.tiny_unet import move, run, unet
from .true_configs import published

SMALL = {"reduction": 4}


def scaled(**fields: Any) -> Any:
    model = unet()
    dp.add_adapter(model, dp.ScaleLongConfig(**fields))
    return model.eval()


def skips_read(model: Any) -> list[Tensor]:
    """The skip half of what each decoder ResNet is called with, in decoder order."""
    found: list[Tensor] = []
    resnets = [m for n, m in model.named_modules() if n.endswith((".resnets.0", ".resnets.1")) and "up_blocks" in n]
    handles = [m.register_forward_pre_hook(lambda m, args: found.append(args[0])) for m in resnets]
    run(model)
    for handle in handles:
        handle.remove()
    return [x[:, -width:] for x, width in zip(found, (16, 8, 8, 8), strict=True)]


@pytest.mark.parametrize(
    ("fields", "factors"),
    [
        ({"method": "cs", "kappa": 0.7}, [0.7**3, 0.7**2, 0.7, 1.0]),
        ({"method": "inv_sqrt2"}, [0.5**0.5] * 4),
    ],
)
def test_constants_count_from_the_shallowest_skip(fields: dict[str, Any], factors: list[float]) -> None:
    # The encoder does not read what is scaled, so that skips of both models are the same.
    for found, skip, factor in zip(skips_read(scaled(**fields)), skips_read(unet()), factors, strict=True):
        torch.testing.assert_close(found, factor * skip)


@pytest.mark.parametrize("fields", [{"method": "none"}, {"method": "cs", "kappa": 1.0}, SMALL])
def test_the_identity_is_the_base_model_bit_for_bit(fields: dict[str, Any]) -> None:
    assert torch.equal(run(scaled(**fields)), run(unet()))


def test_the_published_start_is_near_a_half() -> None:
    for found, skip in zip(skips_read(scaled(init_weights=False, **SMALL)), skips_read(unet()), strict=True):
        factor = found.norm() / skip.norm()
        assert 0.3 < factor < 0.7


def test_a_shared_gate_gets_the_gradients_of_all_its_skips() -> None:
    shared, apart = scaled(init_weights=False, **SMALL).double(), scaled(method="ls_per_skip", **SMALL).double()
    gates = {g.down.in_features: g for m in shared.modules() if isinstance(m, SkipGate) for g in [m]}
    own = [m for m in apart.modules() if isinstance(m, SkipGate)]
    assert (len(gates), len(own)) == (2, 4)
    for gate in own:
        gate.load_state_dict(gates[gate.down.in_features].state_dict())
        gate.identity = False
    generator = torch.Generator().manual_seed(3)
    latents, text = (torch.randn(*s, generator=generator).double() for s in ((1, 4, 8, 8), (1, 5, 12)))
    for model in (shared, apart):
        model(latents, torch.tensor([3]), text).sample.square().sum().backward()
    for width, gate in gates.items():
        for name, parameter in gate.named_parameters():
            parts = [each.get_parameter(name).grad for each in own if each.down.in_features == width]
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, sum(parts), rtol=1e-9, atol=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize(("method", "count"), [("cs", 0), ("ls", 271_180), ("ls_per_skip", 1_239_000)])
def test_counts_on_stable_diffusion(method: str, count: int) -> None:
    model = published("sd15")
    with torch.device("meta"):
        dp.add_adapter(model, dp.ScaleLongConfig(method=method))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


def test_published_count_of_a_gate_over_tokens() -> None:
    gates = [SkipGate(257) for _ in range(6)]
    assert sum(p.numel() for p in gates[0].parameters()) == 8_497
    assert sum(p.numel() for gate in gates for p in gate.parameters()) == 50_982


def test_whole_network_trains_from_scratch() -> None:
    model = scaled(method="cs", kappa=0.7).train()
    model.requires_grad_(True)
    model(torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 5, 12)).sample.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_freeu_checkpointing_and_copies_reach_the_block() -> None:
    model, plain = scaled(**SMALL), unet()
    for each in (model, plain):
        each.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert torch.equal(run(model), run(plain))
    for each in (model, plain):
        each.disable_freeu()
    move(model, "default")
    assert torch.equal(run(copy.deepcopy(model)), run(model))
    expected = run(model)
    model.enable_gradient_checkpointing()
    model.train()
    assert model.up_blocks[0].base_layer.gradient_checkpointing
    torch.testing.assert_close(run(model), expected)


def test_saved_weighed_and_unloaded(tmp_path: Path) -> None:
    model = scaled(**SMALL)
    move(model, "default")
    expected = run(model)
    dp.save_adapter(model, tmp_path)
    loaded = dp.load_adapter(unet(), tmp_path)
    assert torch.equal(run(loaded), expected)
    dp.set_adapters(loaded, "default", 0.0)
    assert torch.equal(run(loaded), run(unet()))
    dp.delete_adapters(loaded, "default")
    assert [type(m) for m in loaded.modules()] == [type(m) for m in unet().modules()]


def test_skips_are_scaled_first_and_edited_then() -> None:
    model = unet()
    composed = dp.compose(model, {"scale": dp.ScaleLongConfig(method="cs", kappa=0.5), "edit": dp.SceditConfig()})
    move(composed, "edit")
    layer, read = model.up_blocks[0].resnets[0], {}
    for module in (layer, layer.base_layer):
        module.register_forward_pre_hook(lambda module, args: read.update({module: args[0][:, -16:]}))
    run(composed)
    before, after = read.values()
    torch.testing.assert_close(before, 0.5**3 * skips_read(unet())[0])
    with torch.no_grad():
        torch.testing.assert_close(after, before + layer.adapters["edit"](before))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"method": "sc"}, r"method must be one of .*; found 'sc'"),
        ({"kappa": 0.0}, r"kappa must be in \(0, 1\]"),
        ({"kappa": 1.5}, r"kappa must be in \(0, 1\]"),
        ({"reduction": 9}, "reduction must be at most 8"),
        ({"target_modules": ["mid_block"]}, "is no up block; those are up_blocks.0, up_blocks.1"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        scaled(**fields)


def test_other_numbers_of_tokens_and_networks_without_skips_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the gate scales 32 tokens .*; the skip has 30"):
        SkipGate(32)(torch.randn(2, 30, 6))
    with pytest.raises(ValueError, match="no long skip connections found in Sequential"):
        dp.add_adapter(nn.Sequential(nn.Linear(2, 2)), dp.ScaleLongConfig())
