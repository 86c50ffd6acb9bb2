"""Controllable SCEdit: how a picture steers, that each forward pass keeps its own, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import diffusion_peft as dp
from peft_kernels.ops.pointwise_mlp import pointwise_mlp_reference

from ..kernels.tiny_unet import move, run, unet

SMALL: dict[str, Any] = {"control": True, "pre_dim_ratio": 0.25, "pre_out_channels": 5, "down_ratio": 0.5}


def picture(seed: int = 0, batch: int = 1, side: int = 64) -> Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def steered(*names: str, tuner: bool = False, **fields: Any) -> Any:
    """A UNet with a moved controllable adapter per name, all active, and an SC-Tuner beside them if asked."""
    model = unet()
    for name in names:
        dp.add_adapter(model, dp.SceditConfig(**{**SMALL, **fields}), name)
    if tuner:
        dp.add_adapter(model, dp.SceditConfig(), "tuner")
        names = (*names, "tuner")
    dp.set_adapters(model, names)
    for name in names:
        move(model, name)
    return model.eval()


def encoder(model: Any, name: str) -> Any:
    return model.conv_in.adapters[name]


# --- what it computes ------------------------------------------------------------------------------------------------
def test_a_new_adapter_is_the_base_model_and_only_what_stands_at_zero_has_a_gradient() -> None:
    model = unet()
    base = run(model)
    dp.add_adapter(model, dp.SceditConfig(**SMALL))
    with dp.condition_on(model, picture()):
        assert torch.equal(run(model), base)
        model(torch.randn(2, 4, 8, 8), torch.tensor([3, 7]), torch.randn(2, 5, 12)).sample.square().sum().backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            opened = ".dense.0." in name or (".dense." in name and name.endswith("bias")) or ".up." in name
            assert p.grad is not None
            assert bool(p.grad.any()) == opened, name
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2).step()
    model.zero_grad()
    with dp.condition_on(model, picture()):
        model(torch.randn(2, 4, 8, 8), torch.tensor([3, 7]), torch.randn(2, 5, 12)).sample.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)


def test_conditions_and_tuner_are_summed_on_the_skip_as_it_was() -> None:
    model = steered("a", "b", tuner=True)
    layer, read = model.up_blocks[1].resnets[0], {}
    for module in (layer, layer.base_layer):
        module.register_forward_pre_hook(lambda module, args: read.update({module: args[0]}))
    pictures = {"a": picture(1), "b": picture(2)}
    with dp.condition_on(model, pictures, {"a": 0.5, "b": -2.0}):
        run(model)
    before, after = (x[:, -8:] for x in read.values())

    def mlp(name: str, x: Tensor) -> Tensor:
        tuner = layer.adapters[name]
        return pointwise_mlp_reference(x, tuner.down.weight, tuner.down.bias, tuner.up.weight, tuner.up.bias, axis=1)

    with torch.no_grad():
        hints = {name: encoder(model, name)(image)[1] for name, image in pictures.items()}
        expected = before + mlp("tuner", before)
        for name, scale in (("a", 0.5), ("b", -2.0)):
            expected = expected + scale * (hints[name] + mlp(name, before + hints[name]))
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-5)


def test_hints_have_the_form_of_the_skips_for_odd_latents_too() -> None:
    model = steered("a")
    latents, image = torch.randn(1, 4, 9, 7), picture()[:, :, :1, :1].expand(1, 3, 72, 56)
    with torch.no_grad(), dp.condition_on(model, image):
        assert model(latents, torch.tensor([3]), torch.randn(1, 5, 12)).sample.shape == latents.shape
    assert [tuple(h.shape[1:]) for h in encoder(model, "a")(image)] == [(8, 9, 7), (8, 9, 7), (8, 5, 4), (16, 5, 4)]


def test_names_do_not_matter_and_weight_0_is_as_if_absent_and_computes_nothing() -> None:
    one, two = steered("a", "b"), steered("a", "b")
    own, other = ({n: p for n, p in m.named_parameters() if "scedit" in n} for m in (one, two))
    with torch.no_grad():
        for name, parameter in other.items():
            swap = name.replace(".a.", ".?.").replace(".b.", ".a.").replace(".?.", ".b.")
            parameter.copy_(own[swap])
    with dp.condition_on(one, {"a": picture(1), "b": picture(2)}, {"a": 0.7, "b": 1.3}):
        expected = run(one)
    with dp.condition_on(two, {"b": picture(1), "a": picture(2)}, {"b": 0.7, "a": 1.3}):
        torch.testing.assert_close(run(two), expected, rtol=1e-5, atol=1e-6)
    with dp.condition_on(one, {"a": picture(1), "b": picture(2)}, {"b": 0.0}):
        alone = run(one)
    encoder(one, "b").register_forward_pre_hook(lambda *_: pytest.fail("a condition of weight 0 is encoded"))
    one.up_blocks[0].resnets[0].adapters["b"].register_forward_pre_hook(lambda *_: pytest.fail("its tuner runs"))
    with dp.condition_on(one, {"a": picture(1), "b": picture(2)}, {"b": 0.0}):
        assert torch.equal(run(one), alone)
    dp.set_adapters(one, ["a", "b"], [1.0, 0.0])
    with dp.condition_on(one, {"a": picture(1)}):
        assert torch.equal(run(one), alone)
    dp.set_adapters(one, "a")
    with dp.condition_on(one, picture(1)):
        assert torch.equal(run(one), alone)


def test_gradient_of_the_picture_agrees_with_finite_differences() -> None:
    model = steered("a", pre_strides=[1, 1, 1, 1, 1, 1, 1]).double()
    latents, text = torch.randn(1, 4, 8, 8, dtype=torch.float64), torch.randn(1, 5, 12, dtype=torch.float64)

    def output(image: Tensor) -> Tensor:
        with dp.condition_on(model, image):
            return model(latents, torch.tensor([3]), text).sample.mean((-1, -2))

    image = (0.2 + 0.6 * picture(side=8).double()).requires_grad_()
    along = torch.randn_like(image)
    (found,) = torch.autograd.grad(output(image).square().sum(), image)
    with torch.no_grad():
        step = 1e-5
        ends = [output(image + sign * step * along).square().sum() for sign in (1, -1)]
    torch.testing.assert_close((found * along).sum(), (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-9)


# --- which pass reads which picture ----------------------------------------------------------------------------------
def trained_gradients(model: Any, losses: list[tuple[int, int]], together: bool) -> dict[str, Tensor]:
    """Gradients of passes with pictures and inputs of these seeds, with one backward pass for all or one each."""
    model.zero_grad()
    total = []
    for seed, inputs in losses:
        generator = torch.Generator().manual_seed(inputs)
        latents, text = (torch.randn(*s, generator=generator).double() for s in ((2, 4, 8, 8), (2, 5, 12)))
        with dp.condition_on(model, picture(seed).double()):
            total.append(model(latents, torch.tensor([3, 7]), text).sample.square().sum())
        if not together:
            total.pop().backward()
    if together:
        sum(total).backward()  # type: ignore[union-attr]
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_passes_with_different_pictures_before_one_backward_pass(checkpointing: bool) -> None:
    plain, model = steered("a").double().train(), steered("a").double().train()
    if checkpointing:
        model.enable_gradient_checkpointing()
    for losses in ([(1, 5), (2, 6)], [(1, 5), (2, 5)]):  # also with the same latents
        expected, found = trained_gradients(plain, losses, False), trained_gradients(model, losses, True)
        assert found.keys() == expected.keys()
        assert any(".dense." in name for name in found)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-10)


def test_nothing_stays_behind_an_error() -> None:
    model = steered("a")
    with pytest.raises(RuntimeError, match="stop"), dp.condition_on(model, picture()):
        raise RuntimeError("stop")
    with pytest.raises(ValueError, match="is steered by a picture and none is given"):
        run(model)


def test_pictures_are_encoded_once_without_gradients_and_anew_when_the_encoder_changes() -> None:
    model, calls = steered("a"), []
    encoder(model, "a").register_forward_pre_hook(lambda *_: calls.append(1))
    image = picture()
    with dp.condition_on(model, image):
        first = run(model)
        image.zero_()  # a copy was taken
        assert torch.equal(run(model), first)
        assert len(calls) == 1
        with torch.no_grad():
            encoder(model, "a").dense[0].bias.add_(1)
        changed = run(model)
        assert len(calls) == 2
        assert (changed - first).abs().max() > 1e-3
        with torch.enable_grad():
            model(torch.randn(2, 4, 8, 8), torch.tensor([3, 7]), torch.randn(2, 5, 12))
        assert len(calls) == 3
    with dp.condition_on(model, picture()):
        assert torch.equal(run(model), changed)


def test_halves_of_guidance_are_steered_alike() -> None:
    model, images = steered("a"), picture(3, batch=2)
    latents, text = torch.randn(2, 4, 8, 8), torch.randn(4, 5, 12)
    with torch.no_grad():
        with dp.condition_on(model, images, guided=True):
            found = model(torch.cat([latents, latents]), torch.tensor(3), text).sample
        with dp.condition_on(model, images.repeat(2, 1, 1, 1)):
            assert torch.equal(model(torch.cat([latents, latents]), torch.tensor(3), text).sample, found)
        with dp.condition_on(model, images[1:]):
            alone = model(latents[1:], torch.tensor(3), text[3:]).sample
    torch.testing.assert_close(found[3:], alone, rtol=1e-4, atol=1e-5)


def test_copies_are_steered_by_themselves() -> None:
    model = steered("a")
    twin = copy.deepcopy(model)
    with dp.condition_on(model, picture(1)):
        expected = run(model)
        with pytest.raises(ValueError, match="none is given"):
            run(twin)
        with dp.condition_on(twin, picture(1)):
            assert torch.equal(run(twin), expected)


def test_saved_and_loaded_beside_a_tuner_and_unloaded(tmp_path: Path) -> None:
    model = steered("a", tuner=True)
    with dp.condition_on(model, picture()):
        expected = run(model)
    other = unet()
    for name in ("tuner", "a"):
        dp.save_adapter(model, tmp_path / name, name)
        dp.load_adapter(other, tmp_path / name, name)
    dp.set_adapters(other, ["a", "tuner"])
    with dp.condition_on(other, picture()):
        torch.testing.assert_close(run(other), expected, rtol=1e-6, atol=1e-7)
    other.unload_lora()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in other.modules()]
    assert sum(hooks) == 0
    assert torch.equal(run(other), run(unet()))


# --- bad input -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("image", "match"),
    [
        (picture(side=60), "is 60 × 60 .* expected 64 × 64: 8 times the latents' 8 × 8"),
        (picture(batch=3), "3 condition images of 'a' for 2 latents"),
        (picture()[:, :1], "has 1 channels, expected 3"),
        (2 * picture() - 1, "must lie in 0 to 1; found -"),
        (picture()[0], r"must be a float tensor \[B, c, H, W\]; found \(3, 64, 64\)"),
        ("edges.png", "found str"),
        ({"b": picture()}, r"no controllable adapter is called 'b'"),
        ({}, "adapter 'a' is steered by a picture and none is given"),
    ],
)
def test_pictures_that_do_not_suit_are_refused(image: Any, match: str) -> None:
    model = steered("a")
    with pytest.raises(ValueError, match=match), dp.condition_on(model, image):
        run(model)


def test_a_model_without_controllable_adapters_and_one_with_two_say_so() -> None:
    with pytest.raises(ValueError, match="has 0 sets of controllable adapters"), dp.condition_on(unet(), picture()):
        pass
    with (
        pytest.raises(ValueError, match="2 controllable adapters are active"),
        dp.condition_on(steered("a", "b"), picture()),
    ):
        pass
