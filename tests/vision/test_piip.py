"""Pyramids: what they start as, what learns when, sizes and shapes, and what they refuse."""

import copy
from typing import Any

import pytest
import timm
import torch
from torch.nn import functional as F

import vision_peft as vp
from vision_peft.models.piip import InteractionSpec
from vision_peft.models.piip.attention import DeformableAttention, DenseAttention
from vision_peft.models.piip.branches import view
from vision_peft.models.piip.interaction import Unit
from vision_peft.models.piip.segments import segments

from .tiny_pyramids import branches, opened, pictures, tiny


def test_a_new_pyramid_is_the_mean_of_its_branches():
    model, x = tiny(), pictures()
    alone = [
        each.model(x if size == (64, 64) else F.interpolate(x, size, mode="bilinear"))
        for each, size in zip(model.views(), model.layout.sizes, strict=True)
    ]
    assert torch.allclose(model(x), torch.stack(alone).mean(0), atol=1e-6)
    assert not torch.allclose(opened(model)(x), torch.stack(alone).mean(0), atol=1e-3)


@pytest.mark.parametrize("spec", [InteractionSpec(deform_num_heads=4), InteractionSpec(norm="none", with_cffn=False)])
def test_a_new_unit_gives_back_what_it_got(spec):
    unit = Unit(64, 32, spec)
    x1, x2 = torch.randn(2, 6, 64), torch.randn(2, 20, 32)
    y1, y2 = unit(x1, (2, 3), x2, (4, 5))
    assert torch.equal(y1, x1)
    assert torch.equal(y2, x2)


@pytest.mark.parametrize(
    ("wide", "narrow", "spec"),
    [
        (64, 32, InteractionSpec(deform_num_heads=4)),
        (96, 48, InteractionSpec(n_points=3, deform_num_heads=6, deform_ratio=0.25, cffn_ratio=0.5)),
        (64, 64, InteractionSpec(deform_num_heads=2, deform_ratio=1.0, with_cffn=False)),
    ],
)
def test_a_units_parameters_are_as_many_as_the_formula_says(wide, narrow, spec):
    def injector(d: int, e: int) -> int:
        v, h = int(spec.deform_ratio * d), int(spec.cffn_ratio * d)
        found = 2 * d + 2 * e + (d + 1) * 3 * spec.deform_num_heads * spec.n_points + (e + 1) * v + (v + 1) * d + d
        return found + (3 * d + (d + 1) * h + 10 * h + (h + 1) * d if spec.with_cffn else 0)

    projections = 2 * wide * narrow + wide + narrow
    found = sum(parameter.numel() for parameter in Unit(wide, narrow, spec).parameters())
    assert found == injector(wide, wide) + injector(narrow, narrow) + projections


def test_attention_on_transposed_grids_is_transposed():
    torch.manual_seed(0)
    attention = DeformableAttention(32, 32, heads=4, points=3)
    for layer in (attention.sampling_offsets, attention.attention_weights):
        torch.nn.init.normal_(layer.weight, std=0.1)
    other = copy.deepcopy(attention)
    for tensor in other.sampling_offsets.parameters():  # x and y change places
        tensor.data = tensor.data.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    query, features = torch.randn(2, 3, 5, 32), torch.randn(2, 4, 7, 32)
    found = attention(query.flatten(1, 2), (3, 5), features.flatten(1, 2), [(4, 7)]).unflatten(1, (3, 5))
    turned = [each.transpose(1, 2).flatten(1, 2) for each in (query, features)]
    expected = other(turned[0], (5, 3), turned[1], [(7, 4)]).unflatten(1, (5, 3)).transpose(1, 2)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, attention(turned[0], (5, 3), turned[1], [(7, 4)]).view_as(found), atol=1e-2)


def test_attention_to_all_features():
    torch.manual_seed(0)
    attention = DenseAttention(8, 12, heads=2)
    query, features = torch.randn(2, 5, 8), torch.randn(2, 7, 12)
    q, k, v = (
        layer(x).view(2, -1, 2, 4).transpose(1, 2)
        for layer, x in ((attention.q, query), (attention.k, features), (attention.v, features))
    )
    read = torch.softmax(q @ k.mT / 4**0.5, -1) @ v
    expected = attention.proj(read.transpose(1, 2).flatten(2))
    assert torch.allclose(attention(query, (1, 5), features, [(1, 7)]), expected, atol=1e-6)


def test_pictures_are_smoothed_where_that_is_asked_for():
    plain, smooth = tiny(), tiny(antialias_images=True)
    x = pictures()
    assert torch.equal(plain.images(x)[0], F.interpolate(x, (32, 32), mode="bilinear"))
    assert torch.equal(smooth.images(x)[0], F.interpolate(x, (32, 32), mode="bilinear", antialias=True))
    assert torch.equal(smooth.images(x)[-1], x)


def test_nothing_is_dropped_in_frozen_branches():
    model, x = opened(tiny(drop_path_rate=0.5)), pictures()
    expected = model(x)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith("branch") or ".head." in name)
    assert torch.allclose(model.train()(x), expected, atol=1e-6)
    assert model.training
    assert model.interactions.training
    model.branch1.requires_grad_(True)
    assert not torch.allclose(model.train()(x), expected, atol=1e-3)


def test_gates_learn_first_then_what_is_behind_them():
    model = tiny(readout="mean").train()
    optimizer, x = torch.optim.SGD(model.interactions.parameters(), lr=0.1), pictures()
    moved = []
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        moved.append({n for n, p in model.interactions.named_parameters() if p.grad.abs().max() > 0})
        optimizer.step()
    everything = {n for n, _ in model.interactions.named_parameters()}
    assert moved[0] == {n for n in everything if n.endswith("gamma")}
    assert everything - moved[1] == {n for n in everything if ".query_norm." in n}  # read by weights that are 0 still
    assert moved[2] == everything


def test_class_tokens_do_not_need_the_last_interaction():
    assert len(tiny().interactions) == 2
    model = opened(tiny(last_interaction=True)).train()
    model(pictures()).sum().backward()
    reached = {n.split(".")[0] for n, p in model.interactions.named_parameters() if p.grad.abs().max() > 0}
    assert reached == {"0", "1"}
    assert len(tiny(readout="patch0").interactions) == len(tiny(output="merged").interactions) == 3


@pytest.mark.parametrize(
    ("depth", "count", "lengths"),
    [(12, 12, [1] * 12), (24, 12, [2] * 12), (32, 12, [2] * 4 + [3] * 8), (48, 12, [4] * 12), (5, 3, [1, 2, 2])],
)
def test_segments(depth, count, lengths):
    found = segments(depth, count, "branch")
    assert [last - first + 1 for first, last in found] == lengths
    assert found[0][0] == 0
    assert found[-1][1] == depth - 1


@pytest.mark.parametrize(
    ("depths", "lengths"), [((3, 3, 9, 3), [3, 4, 2, *[1] * 8, 4]), ((3, 3, 27, 3), [3, 4, 4, *[3] * 8, 4])]
)
def test_segments_of_convolutional_branches_follow_their_stages(depths, lengths):
    with torch.device("meta"):
        found = view(timm.create_model("convnext_atto", depths=depths)).segments(12, "branch")
    assert [last - first + 1 for first, last in found] == lengths
    assert [first for first, _ in found[1:]] == [last + 1 for _, last in found[:-1]]


def test_an_empty_segment_passes_a_branch_by():
    given = [[[0, 0], [1, 2]], [[0, 1], [2, 2]], [[0, 2], [3, 2]]]
    assert tiny(interaction_indexes=given)(pictures()).shape == (2, 5)


def test_pictures_of_another_shape():
    sizes = ((32, 48), (48, 64), (64, 96))
    model = opened(tiny(branches(sizes), output="merged"))
    assert model(pictures(64, 96)).shape == (2, 5)
    assert [state.grid for state in model.run(pictures(64, 96))[-1]] == [(2, 3), (3, 4), (4, 6)]
    free = opened(tiny(dynamic_img_size=True))
    assert [state.grid for state in free.run(pictures(128, 96))[-1]] == [(4, 3), (6, 4), (8, 6)]
    with pytest.raises(ValueError, match="takes pictures of 64×64, but these have 128×96"):
        tiny()(pictures(128, 96))
    with pytest.raises(ValueError, match=r"multiples of 16; found \(100, 96\), and the nearest is 96"):
        free(pictures(100, 96))


def test_each_picture_is_seen_by_itself():
    model, x = opened(tiny(output="merged")), pictures(count=3)
    assert torch.allclose(model(x)[[2, 0, 1]], model(x[[2, 0, 1]]), atol=1e-5)


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "beit_base_patch16_224", "convnext_atto"])
def test_other_families(name):
    small: dict[str, dict[str, Any]] = {
        "eva02_tiny_patch14_224": {"patch_size": 16, "embed_dim": 64, "depth": 3, "num_heads": 2},
        "beit_base_patch16_224": {"embed_dim": 64, "depth": 3, "num_heads": 2},
        "convnext_atto": {"depths": (1, 1, 2, 1), "dims": (16, 32, 32, 64)},
    }
    model, x = tiny([(name, 64, small[name]), *branches((64, 96), (32, 32))]), pictures(96, 96)
    first = model.views()[0]
    state = first.run(first.embed(model.images(x)[0]), 0, first.depth - 1)
    assert torch.allclose(first.normed(state), first.model.forward_features(model.images(x)[0]), atol=1e-5)
    assert opened(model)(x).shape == (2, 5)


@pytest.mark.parametrize(("precision", "near"), [(torch.bfloat16, 2e-2), (torch.float16, 5e-3)])
def test_autocast_keeps_parameters_and_is_near(precision, near):
    model, x = opened(tiny(output="merged")), pictures()
    with torch.no_grad(), torch.autocast("cpu", dtype=precision):
        found = model(x)
    expected = model(x)
    assert (found.float() - expected).norm() < near * expected.norm()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


CONV = ("convnext_atto", 64, {"depths": (1, 1, 2, 1), "dims": (32, 32, 32, 32)})


@pytest.mark.parametrize("readout", ["patch0", "mean"])
def test_readouts_of_a_convolutional_branch(readout):
    model, x = tiny([*branches((32,), (64,)), CONV], readout=readout, n_interactions=3), pictures()
    seen = model.branch2.forward_features(x)
    seen = seen.mean((2, 3), keepdim=True) if readout == "mean" else seen[..., :1, :1]
    given = model.forward_head(model.forward_features(x), pre_logits=True)[:, 64:]
    assert torch.allclose(given, model.branch2.head(seen, pre_logits=True), atol=1e-5)
    assert model(x).shape == (2, 5)


def test_sizes_follow_the_last_in_multiples_of_each_branchs_stride():
    small: dict[str, Any] = {"embed_dim": 32, "depth": 3, "num_heads": 2}
    dino = [("vit_small_patch14_dinov2", size, small) for size in (112, 224)]
    assert tiny(dino, img_size=280).layout.sizes == [(140, 140), (280, 280)]
    assert tiny([CONV, *branches((128,), (32,))], img_size=160).layout.sizes == [(64, 64), (160, 160)]
    mini: Any = timm.create_model("piip_mini", img_size=48)
    assert mini.layout.sizes == [(24, 24), (48, 48)]
    assert mini(pictures(48, 48)).shape == (2, 10)


def test_any_size_beside_branches_that_take_any():
    model = tiny([*branches((32,), (64,)), CONV], dynamic_img_size=True)
    assert model(pictures(96, 128)).shape == (2, 5)


@pytest.mark.parametrize("output", ["separate", "merged", "dense"])
def test_no_pictures_give_no_outputs(output):
    found = tiny(output=output)(pictures(count=0))
    assert [len(each) for each in found] == [0] * 4 if output == "dense" else found.shape == (0, 5)


REFUSED = [
    (
        {"branches": branches()[::-1]},
        r"found widths \[32, 32, 64\], and the right order is vit_tiny_patch16_224 \(64\), vit_tiny_patch16_224",
    ),
    ({"branches": branches((32, 50, 64))}, "sides are multiples of 16; found 50, and the nearest is 48"),
    ({"branches": branches()[:1]}, "two or more branches"),
    ({"branches": [("vit_tinny_patch16_224", 32), *branches()[1:]]}, "did you mean 'vit_tiny_patch16_224'"),
    ({"branches": [("resnet18", 64), *branches()[1:]]}, "must be one of timm's VisionTransformer, Eva, Beit, ConvNeXt"),
    ({"branches": branches(patch_drop_rate=0.5)}, "patch_drop_rate"),
    ({"deform_num_heads": 6}, "deform_num_heads must divide .* 64 .* found 6, and the nearest that does is 4"),
    ({"branches": ["vit_tiny_patch16_224", *branches()[1:]]}, "a branch is a timm model's name.* found 'vit_tiny"),
    ({"branches": [("vit_tiny_patch16_224", "32"), *branches()[1:]]}, r"such as .* 224\); found \('vit_tiny.*'32'\)"),
    ({"branches": [("vit_tiny_patch16_224",)]}, "a branch is a timm model's name"),
    ({"branches": [("beit_base_patch16_224", 32), *branches()[1:]], "dynamic_img_size": True}, "any size; beit_base"),
    ({"drop_path_rate": 1.5}, r"drop_path_rate must be in \[0, 1\); found 1.5"),
    ({"interaction_indexes": [[0, 2]] * 3}, r"pairs of blocks, .* such as \[\[0, 2\]\]; found \[0, 2\]"),
    ({"interaction_indexes": [[]] * 3}, r"pairs of blocks, .*; found \[\]"),
    ({"n_interactions": 4}, "from 1 to the 3 blocks of vit_tiny_patch16_224; found 4"),
    ({"interaction_indexes": [[[0, 2]], [[0, 2]], [[0, 1], [2, 2]]]}, r"same length; found lengths \[1, 1, 2\]"),
    ({"interaction_indexes": [[[0, 2]], [[0, 2]], [[1, 2]]]}, r"without gaps.* found \[1, 2\]"),
    ({"deform_ratio": 0.0}, "above 0 and at most 1; found 0.0"),
    ({"norm": "batch"}, "norm must be one of ln, none"),
    ({"readout": "clss"}, "did you mean 'cls'"),
    ({"output": "merge"}, "did you mean 'merged'"),
    ({"n_pointz": 4}, "no setting 'n_pointz' .did you mean 'n_points'"),
    ({"class_token": False}, "needs output='merged' or 'dense'"),
    ({"merge_at": (0, 1, 2)}, "merge_at needs output='dense'; found 'separate'"),
    ({"merge_at": (0, 2, 1, 3), "output": "dense"}, r"four segments of 0 to 2 in order; found \[0, 2, 1, 3\]"),
    ({"branches": branches(widths=(64, 48, 32)), "output": "merged"}, "multiples of 32; found 48, and the nearest is"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=[str(index) for index in range(len(REFUSED))])
def test_what_does_not_fit_is_refused_with_the_nearest_choice(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny(settings.pop("branches", None), **settings)


def test_a_pyramid_upside_down_is_warned_of():
    with pytest.warns(UserWarning, match="gives the largest to the last"):
        tiny(branches((64, 48, 32)))


def test_branches_take_their_pretrained_weights():
    plain: Any = timm.create_model("vit_mini", pretrained=True)
    model: Any = vp.pyramid([("vit_mini", 32), ("vit_mini", 64)], pretrained=True, num_classes=10, n_interactions=5)
    for own in (model.branch1, model.branch2):
        assert torch.equal(own.blocks[2].mlp.fc1.weight, plain.blocks[2].mlp.fc1.weight)
        assert torch.equal(own.head.weight, plain.head.weight)
    assert torch.equal(model.branch1.pos_embed, plain.pos_embed)
    assert model.branch2.pos_embed.shape == (1, 256, 128)
    x = torch.randn(1, 3, 64, 64)
    small = F.interpolate(x, (32, 32), mode="bilinear")
    assert torch.allclose(model.eval()(x), (plain.eval()(small) + model.branch2(x)) / 2, atol=1e-5)


def test_two_ways_to_resize_positions():
    made: list[Any] = [
        vp.pyramid([("vit_mini", 32), ("vit_mini", 64)], pretrained=True, n_interactions=1, antialias=antialias)
        for antialias in (True, False)
    ]
    positions = [model.branch2.pos_embed for model in made]
    old = made[0].branch1.pos_embed.detach().mT.unflatten(-1, (8, 8))
    plain = F.interpolate(old, (16, 16), mode="bicubic").flatten(2).mT
    assert torch.allclose(positions[1], plain, atol=1e-6)
    assert not torch.allclose(positions[0], positions[1], atol=1e-6)
