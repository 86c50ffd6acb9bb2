"""diffusers' own calls on a UNet with our adapters: add, weigh, disable, fuse, delete."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from .tiny_unet import CONFIGS, adapted, move, run, unet

METHODS = sorted(CONFIGS)
MERGING = [name for name in METHODS if name != "adapter_plus"]


def differs(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (one - other).abs().max().item() > 1e-3


@pytest.mark.parametrize("name", METHODS)
def test_add_adapter_trains_the_adapter_alone(name: str) -> None:
    model = adapted(name)
    run_with_gradient = model(torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 5, 12)).sample
    run_with_gradient.square().sum().backward()
    trainable = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert trainable
    assert all(".one." in key for key in trainable)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trainable.values())


@pytest.mark.parametrize("name", METHODS)
def test_weight_0_is_the_base_model_and_weight_1_the_adapter(name: str) -> None:
    model, base = adapted(name), run(unet())
    trained = run(model)
    assert differs(trained, base)
    outputs = {}
    for weight in (0.0, 0.5, 1.0):
        model.set_adapters("one", weight)
        outputs[weight] = run(model)
    assert torch.equal(outputs[0.0], base)
    assert torch.equal(outputs[1.0], trained)
    assert differs(outputs[0.5], base)
    assert differs(outputs[0.5], trained)


@pytest.mark.parametrize("name", METHODS)
def test_scale_of_a_call_is_the_weight_for_that_call_alone(name: str) -> None:
    model, base = adapted(name), run(unet())
    trained = run(model)
    found = {scale: run(model, cross_attention_kwargs={"scale": scale}) for scale in (0.0, 0.5, 1.0)}
    assert torch.equal(run(model), trained)
    assert torch.equal(found[0.0], base)
    assert torch.equal(found[1.0], trained)
    model.set_adapters("one", 0.5)
    torch.testing.assert_close(found[0.5], run(model))


@pytest.mark.parametrize("name", MERGING)
def test_half_weight_is_half_way_to_the_trained_tensors(name: str) -> None:
    """Half the change of an additive method, and an interpolation to the base for BitFit and SSF, both lie there."""
    half, whole, base = adapted(name), adapted(name), dict(unet().named_parameters())
    half.set_adapters("one", 0.5)
    for model in (half, whole):
        model.fuse_lora()
        model.unload_lora()
    trained = dict(whole.named_parameters())
    assert any(differs(trained[key], base[key]) for key in base)
    for key, found in half.named_parameters():
        start = base.get(key, torch.zeros(()))
        torch.testing.assert_close(found, (start + trained[key]) / 2)


def test_half_weight_of_adapter_plus_halves_the_summand() -> None:
    half, scaled = adapted("adapter_plus"), adapted("adapter_plus")
    half.set_adapters("one", 0.5)
    with torch.no_grad():
        for key, parameter in scaled.named_parameters():
            if key.endswith(".one.scaling"):
                parameter.mul_(0.5)
    torch.testing.assert_close(run(half), run(scaled))


@pytest.mark.parametrize("name", METHODS)
def test_disabled_is_the_base_model_and_enabled_the_adapter_again(name: str) -> None:
    model, base = adapted(name), run(unet())
    trained = run(model)
    model.disable_adapters()
    assert torch.equal(run(model), base)
    model.enable_adapters()
    assert torch.equal(run(model), trained)


@pytest.mark.parametrize("name", METHODS)
def test_several_adapters_by_weight_then_deleted(name: str) -> None:
    model, base = adapted(name), run(unet())
    first = run(model)
    model.add_adapter(CONFIGS[name](), "two")
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".two." in key:
                parameter.add_(0.1)
    model.set_adapters("two")
    second = run(model)
    assert differs(second, first)
    for weights, expected in (([1.0, 0.0], first), ([0.0, 1.0], second), ([0.0, 0.0], base)):
        model.set_adapters(["one", "two"], weights)
        torch.testing.assert_close(run(model), expected)
    model.set_adapters(["one", "two"], [0.7, 0.7])
    assert all(differs(run(model), output) for output in (first, second, base))
    model.delete_adapters("two")
    model.set_adapters("one")
    assert torch.equal(run(model), first)
    assert not [key for key, _ in model.named_parameters() if ".two." in key]
    model.delete_adapters(["one"])
    assert torch.equal(run(model), base)


@pytest.mark.parametrize("name", MERGING)
def test_fused_gives_the_same_and_unfused_the_same_bits(name: str) -> None:
    model = adapted(name)
    trained = run(model)
    model.fuse_lora()
    torch.testing.assert_close(run(model), trained, rtol=1e-4, atol=1e-5)
    model.unfuse_lora()
    assert torch.equal(run(model), trained)


def test_what_cannot_be_fused_says_why_and_stays() -> None:
    model = adapted("adapter_plus")
    trained = run(model)
    with pytest.raises(NotImplementedError, match="an activation function stands between"):
        model.fuse_lora()
    assert torch.equal(run(model), trained)


@pytest.mark.parametrize("name", METHODS)
def test_unloaded_model_is_the_plain_one(name: str) -> None:
    model, plain = adapted(name), unet()
    model.unload_lora()

    def structure(net: nn.Module) -> list[tuple[str, type, int]]:
        return [(key, type(m), len(m._forward_hooks) + len(m._forward_pre_hooks)) for key, m in net.named_modules()]

    assert structure(model) == structure(plain)
    assert torch.equal(run(model), run(plain))
    move(model, "one")  # there is none left to move
    assert torch.equal(run(model), run(plain))
