"""Point-PEFT against its definition cloud by cloud; its counts, memory, prompts' places, lifecycle and refusals."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from torch.nn import functional as F

import vision_peft as vp
from peft_kernels.ops.point_sets import farthest_points_reference
from vision_peft.methods.pointpeft.adapter import Shared
from vision_peft.methods.pointpeft.geometry import neighbourhoods
from vision_peft.methods.pointpeft.memory import memory_tokens

from .tiny_clouds import TINY, after_a_step, checkpointing_changes_no_gradient, clouds, parts, tiny

FIELDS: dict[str, Any] = {
    "num_prompts": 4, "memory_topk": 2, "prompt_depth": 1, "attn_dim": 6, "adapter_dim": 3, "memory_dim": 2,
}  # fmt: skip
COUNTS = [(15, 100, 710_749), (40, 100, 717_174), (15, 0, 671_533)]


def adapted(memory: bool = True, model: Any = None, **fields: Any) -> PeftModel:
    model = tiny() if model is None else model
    torch.manual_seed(2)
    settings = {**FIELDS, **fields}
    config = (
        vp.point_peft_config(model, [clouds(6, seed=9).to(next(model.parameters()))], **settings) if memory else None
    )
    config = config or vp.PointPeftConfig(memory_size=0, **settings)
    return get_peft_model(model, config).eval()  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(("classes", "memory", "trainable"), COUNTS)
def test_counts(classes: int, memory: int, trainable: int) -> None:
    with torch.device("meta"):
        model = timm.create_model("point_mae", num_classes=classes)
        model = get_peft_model(model, vp.PointPeftConfig(memory_size=memory))  # type: ignore[arg-type]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable


def bottleneck(layer: Any, x: Tensor) -> Tensor:
    z = x @ layer.down.weight.T + layer.down.bias
    return z / (1 + torch.exp(-1.702 * z)) @ layer.up.weight.T + layer.up.bias


def by_definition(layer: Any, shared: Shared, x: Tensor, patches: Tensor, recalled: Tensor | None) -> Tensor:
    """The block's output for one cloud: tokens ``[1 + G, C]`` and centres ``[G, 3]``; neighbourhoods have two."""
    block, adapter = layer.base_layer, layer.adapters["default"]
    count, places = len(patches), patches
    own: Any = shared.places
    if adapter.prompt is not None:
        prompts = adapter.prompt
        if recalled is not None:
            prompts = prompts + recalled + bottleneck(adapter.recall, recalled)
        x, places = torch.cat([x[:1], prompts, x[1:]]), torch.cat([own, patches])
    x = x + block.attn(block.norm1(x[None]))[0]
    m = block.mlp(block.norm2(x))
    x = x + m + 0.7 * bottleneck(adapter.beside, m)
    vertices, pooled = x[1:], []
    chosen = farthest_points_reference(places[None], count // 2)[0].tolist()
    for i in chosen:
        near = (places - places[i]).square().sum(-1).argsort(stable=True)[:2]
        group = vertices[near]
        q, k, v = (shared.qkv.weight @ shared.norm(group).T).T.reshape(2, 3, shared.heads, -1).unbind(1)
        heads = [
            (q[:, h] @ k[:, h].T * shared.proj.in_features**-0.5).softmax(-1) @ v[:, h] for h in range(shared.heads)
        ]
        group = group + shared.proj(torch.cat(heads, -1))
        pooled.append(F.gelu(adapter.norm(group.amax(0)[None]))[0] + 0.3 * vertices[i])
    rows = []
    for token, place in zip(vertices[-count:], patches, strict=True):
        weights = torch.stack([1 / ((place - places[i]).square().sum() + 1e-8) for i in chosen])
        rows.append(token + 0.3 * (weights / weights.sum()) @ torch.stack(pooled))
    x = torch.stack([x[0], *rows])
    return x + bottleneck(adapter.behind, x)


@pytest.mark.parametrize("memory", [True, False], ids=["memory", "no memory"])
def test_it_is_its_definition_for_every_cloud_of_a_batch(memory: bool) -> None:
    model, points = adapted(memory).double(), clouds().double()
    base: Any = model.get_base_model()
    layers = list(base.blocks.blocks)
    shared = layers[0].adapters["default"].shared
    with torch.no_grad():
        for norm in (layer.adapters["default"].norm for layer in layers):
            norm.running_mean.uniform_(-0.1, 0.1)
            norm.weight.uniform_(0.5, 1.5)
        feature = vp.cloud_features(base, points)
        expected = []
        patches, centers = base.group_divider(points)
        tokens, pos = base.encoder(patches), base.pos_embed(centers)
        for b in range(len(points)):
            x = torch.cat([base.cls_token[0], tokens[b]])
            where = torch.cat([base.cls_pos[0], pos[b]])
            recalled = memory_tokens(feature[b : b + 1], shared.memory, 2)[0] if memory else None
            for layer in layers:
                x = by_definition(layer, shared, x + where, centers[b], recalled)
            expected.append(base.norm(x))
        found = base.forward_features(points)
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-10)


def test_memory_tokens_are_the_nearest_features_and_their_mean() -> None:
    memory = F.normalize(torch.randn(9, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    feature = F.normalize(torch.randn(2, 5, generator=torch.Generator().manual_seed(1)), dim=-1)
    found = memory_tokens(feature, memory, 3)
    for b in range(2):
        scores = [float(feature[b] @ key) for key in memory]
        best = sorted(range(9), key=lambda i: -scores[i])[:3]
        weights = torch.tensor([scores[i] for i in best]).exp()
        mean = torch.stack([w / weights.sum() * memory[i] for w, i in zip(weights, best, strict=True)]).sum(0)
        torch.testing.assert_close(found[b], torch.stack([feature[b], mean, *memory[best]]))


def test_the_feature_is_that_of_the_model_before_it_was_adapted() -> None:
    plain = vp.cloud_features(tiny(), clouds())
    model = adapted().train()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * p.requires_grad
    torch.testing.assert_close(vp.cloud_features(model, clouds()), plain, rtol=0, atol=0)
    assert model.training
    assert model.get_base_model().blocks.blocks[0].adapters.training  # type: ignore[union-attr,index]


def test_given_features_replace_own_ones() -> None:
    model, x = adapted(), clouds()
    own = vp.cloud_features(model, x)
    with vp.bound_features(model, 3 * own):
        torch.testing.assert_close(model(x), adapted()(x))
    with vp.bound_features(model, own.flip(0)):
        assert not torch.allclose(model(x), adapted()(x), rtol=1e-4)
    with pytest.raises(ValueError, match=r"features must be of shape \[B, 24\]; found \[3, 23\]"):
        with vp.bound_features(model, own[:, 1:]):
            pass


def test_a_cloud_is_the_same_alone_and_beside_others() -> None:
    model, x = adapted(), clouds()
    torch.testing.assert_close(model(x[1:2]), model(x)[1:2], rtol=1e-5, atol=1e-6)


def test_a_model_in_half_precision_has_outputs_near_those_in_float32() -> None:
    low = adapted(model=tiny().bfloat16())
    assert low(clouds().bfloat16()).dtype == torch.bfloat16
    model, x = adapted(), clouds()
    with torch.autocast("cpu", torch.bfloat16):
        found = model(x)
    torch.testing.assert_close(found.float(), model(x), rtol=0.1, atol=0.1)


def test_prompts_leave_the_sequence_as_long_as_it_was() -> None:
    model: Any = adapted().get_base_model()
    _, found = model.forward_intermediates(clouds())
    assert [x.shape[1] for x in found] == [1 + TINY["num_groups"]] * 2


def test_places_of_prompts_have_finite_gradients_where_they_meet_patches() -> None:
    patches = clouds(2, 8)
    places = patches[0, :4].clone().requires_grad_()
    around = neighbourhoods(patches, places, 2, 1e-3)
    (around.weights * torch.arange(4)).sum().backward()
    assert places.grad is not None
    assert torch.isfinite(places.grad).all()


@pytest.mark.parametrize("memory", [True, False], ids=["memory", "no memory"])
def test_all_that_is_trained_gets_a_gradient(memory: bool) -> None:
    model = adapted(memory).train()
    model(clouds()).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_checkpointing_gives_the_same_gradients() -> None:
    checkpointing_changes_no_gradient(adapted)


def test_its_batch_norms_learn_and_those_of_the_patches_do_not() -> None:
    model = adapted().train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith("running_mean")}
    model(clouds())
    moved = {name for name, buffer in model.named_buffers() if name in before and not buffer.equal(before[name])}
    assert {name for name in before if "pointpeft_adapter" in name} <= moved
    assert not [name for name in moved if ".encoder." in name]


def test_saved_and_loaded_bit_for_bit_with_its_memory(tmp_path: Path) -> None:
    model, x = after_a_step(adapted()), clouds()
    expected = model(x)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(tiny(), tmp_path).eval()
    torch.testing.assert_close(loaded(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(loaded)(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(vp.load_adapter(tiny(), tmp_path).eval()(x), expected, rtol=0, atol=0)


def test_switched_off_and_unloaded_it_is_the_base_model() -> None:
    model, x = adapted(), clouds()
    with model.disable_adapter():
        torch.testing.assert_close(model(x), tiny()(x), rtol=0, atol=0)
    for layer in model.modules():
        if hasattr(layer, "set_scale"):
            layer.set_scale("default", 0.0)  # type: ignore[operator]
    torch.testing.assert_close(model(x), tiny()(x), rtol=1e-5, atol=1e-6)
    plain = model.unload()  # type: ignore[operator]
    assert not [m for m in plain.modules() if m._forward_hooks or m._forward_pre_hooks]
    torch.testing.assert_close(plain(x), tiny()(x), rtol=0, atol=0)
    with pytest.raises(NotImplementedError, match="puts tokens into the sequence"):
        adapted().merge_and_unload()  # type: ignore[operator]


def test_parts_are_adapted_too() -> None:
    model = adapted(memory=False, model=parts())
    assert model(clouds(), torch.tensor([0, 5, 15])).shape == (3, 40, 50)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"needs a memory, .* vision_peft.point_peft_config\(model, loader\)"),
        ({"num_prompts": 9}, r"num_prompts must be memory_topk \+ 2 = 10"),
        ({"memory_size": 3}, "memory_size must be at least memory_topk, 8, or 0; found 3"),
        ({"memory_size": 0, "attn_dim": 9, "num_prompts": 1}, "attn_dim must be a multiple of the 2 attention heads"),
        ({"adapter_dim": 0}, "adapter_dim must be an integer >= 1"),
    ],
)
def test_wrong_fields_are_told(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_peft_model(tiny(), vp.PointPeftConfig(**fields))  # type: ignore[arg-type]


def test_a_memory_of_another_width_is_refused() -> None:
    config = vp.PointPeftConfig().with_memory(torch.rand(8, 23))
    with pytest.raises(ValueError, match="the model's width 24; found 23"):
        get_peft_model(tiny(), config)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"at least memory_topk = 8 clouds; found \[7, 24\]"):
        vp.PointPeftConfig().with_memory(torch.rand(7, 24))


def test_models_without_such_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="is a CausalBlock"):
        get_peft_model(tiny("point_gpt_s"), vp.PointPeftConfig(memory_size=0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Point-PEFT reads the centres of a point transformer's patches"):
        get_peft_model(timm.create_model("vit_mini"), vp.PointPeftConfig())  # type: ignore[arg-type]
