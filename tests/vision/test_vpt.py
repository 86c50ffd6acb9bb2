"""Prompts against the paper's equations by hand, on every kind of transformer, through the whole life of an adapter."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import vision_peft as vp
from vision_peft.methods.vpt import Prompt, PromptLayer

from .architectures import images, small

P = 3
VITS = (
    "vit_tiny_patch16_224",
    "vit_small_patch14_reg4_dinov2",  # register tokens
    "vit_base_patch32_clip_224",  # a norm before the blocks
    "vit_base_patch16_siglip_224",  # attention pooling
    "vit_medium_patch16_gap_240",  # average pooling
    "deit_tiny_distilled_patch16_224",  # two class tokens
    "vit_small_patch16_dinov3",  # rotary positions, register tokens
    "eva02_tiny_patch14_224",
    "beit_base_patch16_224",  # relative positions
)
BOTH = pytest.mark.parametrize("deep", [True, False], ids=["deep", "shallow"])


def prompted(model: nn.Module, deep: bool = True, **fields: Any) -> PeftModel:
    config = vp.VptConfig(num_tokens=P, deep=deep, init_weights=False, modules_to_save=[], **fields)
    return get_peft_model(model, config).eval()


def layers(model: nn.Module) -> list[PromptLayer]:
    return [module for module in model.modules() if isinstance(module, PromptLayer)]


def prompts(model: nn.Module, name: str = "default") -> list[Tensor | None]:
    return [layer.adapters[name].prompt for layer in layers(model)]  # type: ignore[misc]


def by_hand(model: Any, given: list[Tensor | None], x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and what each block gives without its prompts; `None` lets the prompts of the block before go on."""
    x, kwargs, n = model.patch_embed(x), {}, model.num_prefix_tokens
    if hasattr(model, "rel_pos_bias"):  # BEiT
        x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], 1)
    elif model.__class__.__name__ == "Eva":
        x, rope = model._pos_embed(x)
        kwargs, x = {"rope": rope}, model.norm_pre(x)
    else:
        x = model.norm_pre(model._pos_embed(x))
    rows, found = x[:, :0], []
    for block, prompt in zip(model.blocks, given, strict=True):
        rows = rows if prompt is None else prompt.expand(len(x), -1, -1)
        p, attention = rows.shape[1], block.attn
        if "rope" in kwargs:  # the attention turns what stands behind its prefix tokens
            attention.num_prefix_tokens += p
        if hasattr(model, "rel_pos_bias"):
            biases = nn.functional.pad(attention._get_rel_pos_bias()[..., n:], (p, 0))
            biases = torch.cat([attention._get_rel_pos_bias()[..., :n], biases], -1)
            biases = torch.cat(
                [biases[:, :, :n], torch.zeros(1, biases.shape[1], p, biases.shape[3]), biases[:, :, n:]], 2
            )
            attention._get_rel_pos_bias = lambda biases=biases: biases
        y = block(torch.cat([x[:, :n], rows, x[:, n:]], 1), **kwargs)
        rows, x = y[:, n : n + p], torch.cat([y[:, :n], y[:, n + p :]], 1)
        found.append(x)
    return model.forward_head(model.norm(x)), found


@BOTH
@pytest.mark.parametrize("architecture", VITS)
def test_outputs_are_those_of_the_equations(architecture: str, deep: bool) -> None:
    model, x = small(architecture), images()
    plain = copy.deepcopy(model)
    adapted = prompted(model, deep)
    with torch.no_grad():
        logits, found = by_hand(plain, prompts(adapted), x)
        torch.testing.assert_close(adapted(x), logits)
        features, intermediates = model.forward_intermediates(x, output_fmt="NLC")  # type: ignore[operator]
        torch.testing.assert_close(model.forward_features(x), features)  # type: ignore[operator]
    n = plain.num_prefix_tokens
    for mine, theirs in zip(intermediates, found, strict=True):
        maps = mine[0] if isinstance(mine, tuple) else mine
        torch.testing.assert_close(maps, theirs[:, n:])  # type: ignore[misc]
    assert model.num_prefix_tokens == n


@BOTH
def test_intermediate_maps_have_the_shape_of_the_base_model(deep: bool) -> None:
    model: Any = small("vit_small_patch14_reg4_dinov2", dynamic_img_size=True)
    x = torch.randn(2, 3, 48, 32)
    prompted(model, deep)
    maps, prefix = model.get_intermediate_layers(x, n=1, reshape=True, return_prefix_tokens=True)[0]
    assert maps.shape == (2, 24, 6, 4)
    assert prefix.shape == (2, 5, 24)


def test_deep_prompts_stand_behind_the_class_token_in_every_block() -> None:
    with torch.device("meta"):
        adapted = get_peft_model(timm.create_model("vit_base_patch16_224"), vp.VptConfig(num_tokens=50))
        seen: list[torch.Size] = []
        for layer in layers(adapted):
            layer.base_layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
        adapted(torch.empty(2, 3, 224, 224))
    assert seen == [(2, 1 + 50 + 196, 768)] * 12
    model = small("vit_small_patch14_reg4_dinov2")
    adapted, inputs = prompted(model), []
    layers(adapted)[1].base_layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    adapted(images())
    torch.testing.assert_close(inputs[0][:, 5 : 5 + P], prompts(adapted)[1].expand(6, -1, -1))  # type: ignore[union-attr]


@BOTH
@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "beit_base_patch16_224"])
def test_gradient_checkpointing_changes_no_bit(architecture: str, deep: bool) -> None:
    model: Any = small(architecture)
    adapted, found = prompted(model, deep, dropout=0.3).train(), []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        torch.manual_seed(7)
        first = adapted(images())  # two passes before the backward pass of both
        second = adapted(images() + 1)
        adapted.zero_grad()
        (first.square().sum() + 3 * second.sum()).backward()
        found.append([first, second, *(p.grad for p in adapted.parameters() if p.requires_grad)])
    assert len(found[0]) == 2 + (2 if deep else 1)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


def test_shallow_prompts_that_get_lost_are_missed() -> None:
    adapted = prompted(small("vit_tiny_patch16_224"), deep=False)
    x = torch.randn(1, 5, 24, requires_grad=True)
    first, second = layers(adapted)
    assert second(first(x)).shape == x.shape
    output = checkpoint(second, first(x), use_reentrant=True)
    with pytest.raises(RuntimeError, match="did not reach this block"):
        output.sum().backward()
    with pytest.raises(RuntimeError, match="did not reach this block"):
        second(first(x) + 0)


def test_two_active_adapters_are_one_with_the_prompts_of_both() -> None:
    for deep in (True, False):
        model: Any = small("vit_tiny_patch16_224")
        adapted: Any = prompted(model, deep)
        adapted.add_adapter("other", vp.VptConfig(num_tokens=2, deep=deep, init_weights=False, modules_to_save=[]))
        one: Any = get_peft_model(small("vit_tiny_patch16_224"), vp.VptConfig(num_tokens=P + 2, deep=deep)).eval()
        for joined, first, second in zip(prompts(one), prompts(adapted), prompts(adapted, "other"), strict=True):
            if joined is not None:
                joined.data = torch.cat([first, second])  # type: ignore[list-item]
        adapted.base_model.set_adapter(["default", "other"])
        torch.testing.assert_close(model.forward_features(images()), one.forward_features(images()))


def test_deep_and_shallow_prompts_run_side_by_side() -> None:
    model = small("vit_tiny_patch16_224")
    adapted: Any = prompted(model, deep=True)
    adapted.add_adapter("shallow", vp.VptConfig(num_tokens=2, deep=False, init_weights=False, modules_to_save=[]))
    alone = {name: adapted(images()) for name in ("default", "shallow") if adapted.set_adapter(name) is None}
    adapted.base_model.set_adapter(["shallow", "default"])
    both = adapted(images())
    both.sum().backward()
    assert all(not torch.allclose(both, output) for output in alone.values())
    assert all(p is None or p.grad.abs().sum() > 0 for n in alone for p in prompts(adapted, n))  # type: ignore[union-attr]


@BOTH
@pytest.mark.parametrize("architecture", VITS)
def test_a_scale_weighs_the_prompts_as_so_many_copies(architecture: str, deep: bool) -> None:
    model, x = small(architecture), images()
    with torch.no_grad():
        base = model(x)
        adapted = prompted(model, deep)
        for layer in layers(adapted):
            layer.set_scale("default", 2.0)
        doubled = adapted(x)
        for layer in layers(adapted):
            prompt = layer.adapters["default"].prompt
            if isinstance(prompt, nn.Parameter):
                prompt.data = torch.cat([prompt, prompt])
            layer.set_scale("default", 1.0)
        torch.testing.assert_close(doubled, adapted(x))
        for layer in layers(adapted):
            layer.set_scale("default", 0.0)
        assert torch.equal(adapted(x), base)
    with pytest.raises(ValueError, match="at least 0; found -1"):
        layers(adapted)[0].set_scale("default", -1)


@pytest.mark.parametrize("mask", [torch.ones(5, 5, dtype=torch.bool).tril(), torch.zeros(5, 5), torch.ones(1, 1, 5)])
def test_attention_masks_leave_the_prompts_as_they_are(mask: Tensor) -> None:
    """The class token and four patches: whom they do not attend to, they do not with prompts between them either."""
    model: Any = small("vit_tiny_patch16_224", img_size=16)
    x, n = images()[..., :16, :16], 1
    adapted: Any = prompted(model)
    seen: list[Tensor] = []
    layers(adapted)[0].base_layer.attn.register_forward_pre_hook(  # type: ignore[union-attr]
        lambda _, args, kwargs: seen.append(kwargs["attn_mask"]), with_kwargs=True
    )
    adapted(x, attn_mask=mask)
    kept = [0, *range(n + P, 5 + P)]
    inner = seen[0][..., kept]
    torch.testing.assert_close(inner if mask.shape[-2] == 1 else inner[..., kept, :], mask)
    between = seen[0][..., n : n + P]
    assert between.all() if mask.dtype == torch.bool else not between.any()


def test_nothing_is_left_on_the_model_after_unloading() -> None:
    model = small("beit_base_patch16_224")
    before = {name: (type(m), sorted(m.__dict__), len(m._forward_hooks)) for name, m in model.named_modules()}
    with torch.no_grad():
        logits = model(images())
    adapted = prompted(model)
    adapted(images())
    with pytest.raises(NotImplementedError, match="prompts are tokens that the blocks attend to"):
        adapted.merge_and_unload()
    plain = adapted.unload()
    assert {name: (type(m), sorted(m.__dict__), len(m._forward_hooks)) for name, m in plain.named_modules()} == before
    with torch.no_grad():
        assert torch.equal(plain(images()), logits)


def test_prompts_start_as_in_the_authors_code() -> None:
    adapted = get_peft_model(timm.create_model("vit_tiny_patch16_224", depth=2), vp.VptConfig(num_tokens=200))
    bound = (6 / (3 * 16 * 16 + 192)) ** 0.5
    for prompt in prompts(adapted):
        assert prompt is not None
        assert 0.99 * bound < prompt.abs().max() <= bound
        assert abs(prompt.std() - bound / 3**0.5) < 0.01 * bound


def test_dropout_is_drawn_for_each_sample_while_training() -> None:
    prompt = Prompt((50, 40), 0.1, travels=False, dropout=0.25)
    x = torch.zeros(4, 5, 40)
    tokens = prompt.train().tokens("default", x)
    assert abs((tokens == 0).float().mean() - 0.25) < 0.03
    assert not torch.equal(tokens[0], tokens[1])
    assert torch.equal(prompt.eval().tokens("default", x), prompt.prompt.expand(4, -1, -1))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_tokens": 0}, r"num_tokens must be an integer >= 1; found 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\); found 1.0"),
        ({"target_modules": ["attn.qkv"]}, r"prompts whole transformer blocks; 'blocks.0.attn.qkv' is a Linear"),
        (
            {"target_modules": ["blocks.0", "blocks.2"], "deep": False},
            r"must follow each other; found \['blocks.0', 'b",
        ),
    ],
)
def test_what_has_no_meaning_is_refused(fields: dict[str, Any], said: str) -> None:
    model = small("vit_tiny_patch16_224", depth=3)
    with pytest.raises(ValueError, match=said):
        get_peft_model(model, vp.VptConfig(**fields))
    assert not layers(model)
