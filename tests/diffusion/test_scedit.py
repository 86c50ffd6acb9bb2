"""SCEdit's tuners on the skips of UNets: where they stand, how many they are, what they change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

import diffusion_peft as dp
from peft_kernels.ops.pointwise_mlp import pointwise_mlp_reference
from peft_kernels.skips import long_skips

from ..kernels.tiny_unet import move, run, unet
from .true_configs import predict, published, small

SD = [1280] * 5 + [640] * 3 + [320] * 4
SDXL = [1280] * 2 + [640] * 3 + [320] * 4


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def with_tuner(name: str = "one", **fields: Any) -> Any:
    model = unet()
    dp.add_adapter(model, dp.SceditConfig(**fields), name)
    move(model, name)
    return model.eval()


# --- where, and how many ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "widths"), [("sd15", SD), ("sd2", SD), ("sdxl", SDXL)])
def test_skips_of_published_unets(name: str, widths: list[int]) -> None:
    skips = long_skips(published(name))
    assert [skip.channels for skip in skips] == widths
    halved = [0, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0] if widths is SD else [0, 0, 0, 1, 0, 0, 1, 0, 0]
    assert [int(skip.halved) for skip in reversed(skips)] == halved


@pytest.mark.parametrize(
    ("name", "fields", "count"),
    [
        ("sd15", {}, 19_680_000),
        ("sd2", {}, 19_680_000),
        ("sd15", {"down_ratio": 0.5}, 9_844_800),
        ("sd15", {"down_ratio": 0.25}, 4_927_200),
        ("sd15", {"down_ratio": 0.1}, 1_976_640),
        ("sdxl", {}, 9_841_920),
        ("sdxl", {"down_ratio": 0.5}, 4_923_840),
        ("sdxl", {"down_ratio": 0.25}, 2_464_800),
        ("sdxl", {"down_ratio": 0.1}, 989_376),
        ("sd15", {"control": True, "dense_kernel": 1}, 28_824_400),
        ("sd2", {"control": True}, 99_111_760),
        ("sdxl", {"control": True, "pre_out_channels": 320, "pre_dim_ratio": 2.0}, 45_930_080),
        ("sdxl", {"control": True, "dense_kernel": 1}, 14_067_280),
    ],
)
def test_published_parameter_counts(name: str, fields: dict[str, Any], count: int) -> None:
    model = published(name)
    with torch.device("meta"):
        dp.add_adapter(model, dp.SceditConfig(**fields))
    assert sum(p.numel() for p in trained(model).values()) == count


@pytest.mark.parametrize("name", ["sd15", "sd2", "sdxl"])
def test_small_unets_of_published_form_train_every_parameter(name: str) -> None:
    model = small(name).requires_grad_(False)  # frozen weights are multiplied by other kernels, even without gradients
    with torch.no_grad():
        base = predict(name, model)
    dp.add_adapter(model, dp.SceditConfig(down_ratio=0.5))
    with torch.no_grad():
        assert torch.equal(predict(name, model), base)
    move(model, "default")
    predict(name, model).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained(model).values())


def test_uneven_blocks_odd_latents_and_a_unet_without_text() -> None:
    uneven = small("sd15", layers_per_block=(1, 2, 1, 2))
    plain = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()
    latents, time = torch.randn(1, 4, 9, 7), torch.tensor([3])
    with torch.no_grad():
        for model, inputs in (
            (uneven, (latents, time, torch.randn(1, 5, 12))),
            (plain, (latents[:, :3, :8, :6], time)),
        ):
            base = model(*inputs).sample
            dp.add_adapter(model, dp.SceditConfig())
            assert torch.equal(model(*inputs).sample, base)
            move(model, "default")
            assert (model(*inputs).sample - base).abs().max() > 1e-3


# --- the start -------------------------------------------------------------------------------------------------------
def test_a_new_tuner_is_the_base_model_and_its_second_layer_alone_has_a_gradient() -> None:
    model = unet()
    base = run(model)
    dp.add_adapter(model, dp.SceditConfig())
    assert torch.equal(run(model), base)
    model(torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 5, 12)).sample.square().sum().backward()
    for name, parameter in trained(model).items():
        assert parameter.grad is not None
        assert bool(parameter.grad.any()) == (".up." in name), name


def test_the_hidden_width_is_cut_off_not_rounded() -> None:
    assert dp.SceditConfig(down_ratio=0.7).hidden(0, 6) == 4
    with pytest.raises(ValueError, match="leaves no hidden channel of the 6 of skip 0"):
        dp.SceditConfig(down_ratio=0.1).hidden(0, 6)


def test_random_start_changes_the_output() -> None:
    model = unet()
    dp.add_adapter(model, dp.SceditConfig(init_weights=False))
    assert (run(model) - run(unet())).abs().max() > 1e-3


# --- what it computes ------------------------------------------------------------------------------------------------
def by_hand(model: Any, adapters: list[str], scale: float = 1.0) -> Any:
    """A plain UNet whose up blocks are given the skips as the tuners of ``model`` edit them."""
    plain, parameters = unet(), dict(model.named_parameters())

    def edit(index: int) -> Any:
        def before(block: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            skips = list(kwargs["res_hidden_states_tuple"])
            for r in range(len(skips)):
                summand = torch.zeros(())
                for adapter in adapters:
                    place = f"up_blocks.{index}.resnets.{r}.scedit_adapter.{adapter}"
                    names = ("down.weight", "down.bias", "up.weight", "up.bias")
                    given = [parameters[f"{place}.{name}"] for name in names]
                    summand = summand + scale * pointwise_mlp_reference(skips[-1 - r], *given, axis=1)
                skips[-1 - r] = skips[-1 - r] + summand
            return args, {**kwargs, "res_hidden_states_tuple": tuple(skips)}

        return before

    for index, block in enumerate(plain.up_blocks):
        block.register_forward_pre_hook(edit(index), with_kwargs=True)
    return plain


def test_the_skips_that_up_blocks_are_given_could_be_edited_instead() -> None:
    model = with_tuner()
    torch.testing.assert_close(run(model), run(by_hand(model, ["one"])), rtol=1e-5, atol=1e-6)
    model.set_adapters("one", -1.5)
    torch.testing.assert_close(run(model), run(by_hand(model, ["one"], -1.5)), rtol=1e-5, atol=1e-6)


def test_several_tuners_are_summed_on_the_skip_as_it_was_whatever_their_order() -> None:
    model = with_tuner()
    dp.add_adapter(model, dp.SceditConfig(down_ratio=0.5), "another")
    move(model, "another")
    found = []
    for names in (["one", "another"], ["another", "one"]):
        dp.set_adapters(model, names)
        found.append(run(model))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[0], run(by_hand(model, ["one", "another"])), rtol=1e-5, atol=1e-6)


def test_scales_of_one_skip_are_affine_there_and_0_is_the_base() -> None:
    model = with_tuner(skip_indices=[2])
    seen: list[Tensor] = []
    model.up_blocks[1].resnets[0].base_layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for scale in (0.0, 1.0, 1.5, -2.0):
        model.set_adapters("one", scale)
        out = run(model)
        if scale == 0:
            assert torch.equal(out, run(unet()))
    base, one = seen[0], seen[1] - seen[0]
    assert one[:, :-8].abs().max() == 0
    assert one[:, -8:].abs().max() > 1e-3
    for scale, value in zip((1.5, -2.0), seen[2:], strict=True):
        torch.testing.assert_close(value - base, scale * one, rtol=1e-4, atol=1e-5)


def test_scale_per_skip() -> None:
    scales = [0.5, 0.0, 2.0, -1.0]
    model, other = with_tuner(scale=scales), with_tuner()
    with torch.no_grad():
        for skip, scale in zip(long_skips(other), scales, strict=True):
            up = other.get_submodule(skip.reader).adapters["one"].up
            up.weight.mul_(scale)
            up.bias.mul_(scale)
    torch.testing.assert_close(run(model), run(other), rtol=1e-5, atol=1e-6)


def test_unedited_skips_carry_nothing() -> None:
    model = with_tuner(skip_indices=[0, 3])
    assert {name.partition(".scedit")[0] for name in trained(model)} == {
        "up_blocks.0.resnets.0",
        "up_blocks.1.resnets.1",
    }


def test_freeu_comes_before_the_tuner() -> None:
    model = with_tuner()
    model.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    read = {}
    for layer in (model.up_blocks[0].resnets[0], model.up_blocks[0].resnets[0].base_layer):
        layer.register_forward_pre_hook(lambda module, args: read.update({module: args[0]}))
    run(model)
    before, after = read.values()
    tuner = model.up_blocks[0].resnets[0].adapters["one"]
    with torch.no_grad():
        expected = before[:, -16:] + tuner(before[:, -16:])
    torch.testing.assert_close(after[:, -16:], expected, rtol=1e-5, atol=1e-6)
    plain = with_tuner()
    assert (run(model) - run(plain)).abs().max() > 1e-4


def test_what_a_controlnet_adds_to_the_skips_comes_before_the_tuner() -> None:
    model = with_tuner()
    layers: list[Any] = [model.get_submodule(skip.reader) for skip in long_skips(model)]
    widths = [skip.channels for skip in long_skips(model)]

    def skips(modules: list[Any], **added: Any) -> list[Tensor]:
        read: list[Tensor] = []
        handles = [module.register_forward_pre_hook(lambda _, args: read.append(args[0])) for module in modules]
        torch.manual_seed(7)
        with torch.no_grad():
            model(torch.randn(2, 4, 8, 8), torch.tensor([3, 7]), torch.randn(2, 5, 12), **added)
        for handle in handles:
            handle.remove()
        return [x[:, -width:] for x, width in zip(read, widths, strict=True)]

    plain = skips(layers)
    added = [torch.randn_like(skip) for skip in plain]
    more = {"down_block_additional_residuals": added[::-1], "mid_block_additional_residual": torch.zeros(())}
    expected = [skip + residual for skip, residual in zip(plain, added, strict=True)]
    torch.testing.assert_close(skips(layers, **more), expected)
    with torch.no_grad():
        edited = [skip + layer.adapters["one"](skip) for skip, layer in zip(expected, layers, strict=True)]
    torch.testing.assert_close(skips([layer.base_layer for layer in layers], **more), edited, rtol=1e-5, atol=1e-6)


def test_tokens() -> None:
    class Block(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    model = nn.Sequential(Block(), Block())
    dp.add_adapter(model, dp.SceditConfig(target_modules=["0", "1"], skip_channels=[4, 6]))
    x = torch.randn(2, 5, 9)
    assert torch.equal(model(x), x)
    move(model, "default")
    layers: list[Any] = [layer.adapters["default"] for layer in model]  # type: ignore[index]
    with torch.no_grad():
        y = torch.cat([x[..., :5], x[..., 5:] + layers[0](x[..., 5:])], -1)
        y = torch.cat([y[..., :3], y[..., 3:] + layers[1](y[..., 3:])], -1)
        torch.testing.assert_close(model(x), y)
