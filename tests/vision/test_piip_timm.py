"""Pyramids where timm's tools and PEFT use them: features, classifiers, groups, checkpoints, adapters."""

from typing import Any

import pytest
import timm
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay
from torchvision.models.segmentation import FCN
from torchvision.models.segmentation.fcn import FCNHead

from vision_peft import interactions_config, load_adapter, torchvision_backbone
from vision_peft.models import Segmenter
from vision_peft.models.piip import Piip, macs
from vision_peft.models.piip.released import checkpoint_filter_fn

from .tiny_pyramids import branches, opened, pictures, tiny


def test_names():
    assert set(timm.list_models("*piip*")) >= {"piip_vit_tsb", "piip_vit_sbl_320", "piip_vit_sbl_384", "piip_vit_tsbl"}


@pytest.mark.parametrize("name", ["piip_vit_tsb", "piip_vit_sbl_384"])
def test_default_configuration_names_what_is_there(name):
    with torch.device("meta"):
        model: Any = timm.create_model(name)
    state, cfg = model.state_dict(), model.default_cfg
    assert all(f"{part}.weight" in state for part in (*cfg["first_conv"], *cfg["classifier"]))
    assert cfg["input_size"][1:] == model.layout.sizes[-1]


def test_the_embedded_pyramid_is_its_pretrained_branches():
    model: Any = timm.create_model("piip_mini", pretrained=True).eval()
    plain: Any = timm.create_model("vit_mini", pretrained=True).eval()
    x = pictures()
    assert torch.equal(model.branch2.blocks[1].mlp.fc1.weight, plain.blocks[1].mlp.fc1.weight)
    small = torch.nn.functional.interpolate(x, (32, 32), mode="bilinear")
    assert torch.allclose(model(x), (plain(small) + model.branch2(x)) / 2, atol=1e-5)
    assert macs(model)["branch1"] == macs(plain)["total"]
    model.train()(x).sum().backward()
    assert model.interactions[-1].interaction_units_12.branch2to1_injector.ca_gamma.grad.abs().max() > 0
    dense: Any = timm.create_model("piip_mini", pretrained=True, features_only=True, out_indices=(2,))
    assert [tuple(each.shape) for each in dense(x)] == [(2, 128, 16, 16)]
    assert not [n for n, _ in dense.named_parameters() if "levels" in n]


def test_features_only_gives_a_pyramid_of_levels():
    model: Any = tiny(features_only=True)
    assert model.feature_info.channels() == [64] * 4
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    maps = model(pictures())
    assert [tuple(level.shape) for level in maps] == [(2, 64, side, side) for side in (16, 8, 4, 2)]
    some: Any = tiny(features_only=True, out_indices=(1, 3))
    assert [level.shape[-1] for level in some(pictures())] == [8, 2]
    assert "branch1.cls_token" not in model.model.state_dict()


CONV = {"depths": (1, 1, 3, 1)}
HYBRIDS: dict[str, Any] = {
    "conv, vit": [("convnext_atto", 64, {**CONV, "dims": (32, 64, 64, 128)}), *branches((96,), (64,), 6)],
    "vit, conv": [*branches((64,), (128,), 6), ("convnext_atto", 96, {**CONV, "dims": (32, 32, 64, 64)})],
    "conv, vit, conv": [
        ("convnext_atto", 64, {**CONV, "dims": (32, 64, 128, 256)}),
        *branches((64,), (64,), 6),
        ("convnext_atto", 96, {**CONV, "dims": (32, 32, 64, 64)}),
    ],
}


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_convolutional_branch_gives_levels_of_four_depths(name):
    settings: dict[str, Any] = {"n_interactions": 5, "features_only": True}
    model, x = tiny(HYBRIDS[name], **settings), pictures(96, 96)
    maps = model(x)
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    assert [tuple(each.shape) for each in maps] == [
        (2, width, side, side) for width, side in zip(model.feature_info.channels(), (24, 12, 6, 3), strict=True)
    ]
    assert model.model.merge_at == [0, 1, 3, 4]
    torch.stack([each.square().mean() for each in maps]).sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    part = tiny(HYBRIDS[name], out_indices=(0, 2), **settings)
    part.model.load_state_dict(model.model.state_dict(), strict=False)
    assert len(part.model.interactions) == 4
    for found, expected in zip(part(x), (maps[0], maps[2]), strict=True):
        assert torch.allclose(found, expected, atol=1e-6)


def test_four_depths_are_chosen():
    model = tiny(features_only=True, n_interactions=3, given=HYBRIDS["conv, vit"])
    assert model.model.merge_at is None  # too few segments: all levels are made of the last map
    again = tiny(branches(depth=6), features_only=True, n_interactions=6, merge_at=(0, 2, 4, -1))
    assert again.model.merge_at == [0, 2, 4, 5]
    assert [tuple(each.shape[2:]) for each in again(pictures())] == [(16, 16), (8, 8), (4, 4), (2, 2)]


@pytest.mark.parametrize("output", ["merged", "separate"])
def test_features_of_hybrid_classifiers_are_where_they_are_said_to_be(output):
    model = tiny(HYBRIDS["vit, conv"], n_interactions=5, output=output)
    maps = model.forward_intermediates(pictures(96, 96), intermediates_only=True)
    assert [(each.shape[1], 96 // each.shape[2]) for each in maps] == [
        (info["num_chs"], info["reduction"]) for info in model.feature_info
    ]


def test_features_of_a_classifier_are_the_branches_maps():
    whole, x = opened(tiny(output="merged")), pictures()
    features, maps = whole.forward_intermediates(x)
    assert torch.equal(features, whole.forward_features(x))
    assert [tuple(each.shape) for each in maps] == [(2, 128, 4, 4)] * 3
    part: Any = tiny(output="merged", features_only=True, out_indices=(0, 1))
    part.model.load_state_dict(whole.state_dict(), strict=False)
    for found, expected in zip(part(x), maps[:2], strict=True):
        assert torch.allclose(found, expected, atol=1e-6)
    assert len(part.model.branch1.blocks) == len(part.model.interactions) == 2


def test_maps_come_in_the_order_asked_for():
    given = tiny(HYBRIDS["conv, vit"], n_interactions=5, features_only=True, out_indices=(3, 1))
    assert [(each.shape[1], 96 // each.shape[2]) for each in given(pictures(96, 96))] == list(
        zip(given.feature_info.channels(), given.feature_info.reduction(), strict=True)
    )


@pytest.mark.parametrize("output", ["separate", "merged"])
def test_pruned_behind_the_last_map_a_classifier_stays_what_it_is(output):
    model, x = opened(tiny(output=output)), pictures()
    expected = model(x)
    assert model.prune_intermediate_layers([2], prune_head=False) == [2]
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("output", ["separate", "merged"])
def test_classifiers_are_replaced(output):
    model, x = tiny(output=output), pictures()
    before = model.forward_head(model.forward_features(x), pre_logits=True)
    assert before.shape == (2, model.head_hidden_size)
    model.reset_classifier(0)
    assert torch.allclose(model(x), before)
    assert model(x).shape == (2, model.num_features)
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    heads = model.get_classifier()
    assert [head.out_features for head in (heads if isinstance(heads, tuple) else (heads,))] == [7] * (
        3 if output == "separate" else 1
    )
    assert tiny(output=output, num_classes=0)(x).shape == (2, model.num_features)


def test_layer_decay_knows_every_parameter():
    model = tiny(output="merged")
    groups = param_groups_layer_decay(
        model, weight_decay=0.1, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5
    )
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert scale.keys() == {id(p) for p in named.values()}
    assert scale[id(named["branch1.pos_embed"])] < scale[id(named["branch1.blocks.0.attn.qkv.weight"])]
    assert scale[id(named["branch1.blocks.0.attn.qkv.weight"])] < scale[id(named["branch2.blocks.2.attn.qkv.weight"])]
    new = [p for n, p in named.items() if not n.startswith("branch")]
    assert {scale[id(p)] for p in new} == {1.0}
    assert scale[id(named["branch1.blocks.2.attn.qkv.weight"])] == 0.5
    assert all(decay[id(p)] == 0 for n, p in named.items() if p.ndim < 2 or "pos_embed" in n)


def test_layers_are_counted_by_their_place_in_their_branch():
    deep, shallow = branches((32,), (64,), depth=6), branches((64,), (32,), depth=3)
    model = tiny([*deep, *shallow])
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    found = [[layers[f"branch{j}.blocks.{i}.norm1.weight"] for i in range(n)] for j, n in ((1, 6), (2, 3))]
    assert found == [[1, 2, 3, 4, 5, 6], [2, 4, 6]]
    assert layers["branch2.head.weight"] == layers["interactions.0.interaction_units_12.branch2to1_proj.weight"] == 7


def test_checkpointing_changes_no_gradient():
    model, x = opened(tiny(output="merged", drop_path_rate=0.3, interaction_drop_path_rate=0.3)).train(), pictures()
    found = []
    for on in (False, True):
        model.set_grad_checkpointing(on)
        model.zero_grad()
        torch.manual_seed(3)
        model(x).square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for left, right in zip(*found, strict=True):
        assert torch.allclose(left, right, atol=1e-6)


def test_released_names_are_understood_and_other_pyramids_refused(tmp_path):
    model = tiny(branches(init_values=1.0), output="merged")
    released = {
        name.removeprefix("merge.").replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): value
        for name, value in model.state_dict().items()
    }
    fresh = tiny(branches(init_values=1.0), seed=9, output="merged")
    fresh.load_state_dict(checkpoint_filter_fn({"model": released}, fresh))
    assert torch.equal(fresh(pictures()), model(pictures()))
    save_file(released, tmp_path / "pyramid.safetensors")
    again = tiny(branches(init_values=1.0), seed=9, output="merged")
    timm.models.load_checkpoint(again, str(tmp_path / "pyramid.safetensors"))
    assert torch.equal(again(pictures()), model(pictures()))
    with pytest.raises(ValueError, match=r"of another pyramid than .* at 64×64 with 3 segments: branch1.pos_embed is"):
        checkpoint_filter_fn(tiny(branches((48, 48, 64), init_values=1.0), output="merged").state_dict(), fresh)
    other = tiny(branches((48, 48, 64), init_values=1.0), output="merged")
    with pytest.raises(ValueError, match=r"of another pyramid than .* at 64×64 with 3 segments: branch1.pos_embed is"):
        timm.models.load_checkpoint(other, str(tmp_path / "pyramid.safetensors"))
    with pytest.raises(ValueError, match="it has 3 branches and 1 interactions, this one 3 and 2"):
        tiny().load_state_dict(tiny(n_interactions=2).state_dict())
    with pytest.raises(ValueError, match=r"none of its 1 tensors is here, the first being conv1\.weight"):
        checkpoint_filter_fn({"conv1.weight": torch.zeros(1)}, fresh)


@pytest.mark.parametrize("output", ["separate", "merged"])
def test_an_adapter_holds_what_is_new_and_the_branches_stay(output, tmp_path):
    base, x = tiny(output=output), pictures()
    before, frozen = base(x), {n: p.clone() for n, p in base.state_dict().items() if n.startswith("branch")}
    model: Any = get_peft_model(base, interactions_config(base))
    trained = [p for p in model.parameters() if p.requires_grad]
    new = [p for n, p in tiny(output=output).named_parameters() if not n.startswith("branch") or ".head." in n]
    assert sum(p.numel() for p in trained) == sum(p.numel() for p in new)
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(3):
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    after = model.eval()(x)
    assert (after - before).abs().max() > 1e-3
    with model.disable_adapter():
        assert torch.equal(model(x), before)
    model.save_pretrained(tmp_path)
    assert not [n for n in load_file(tmp_path / "adapter_model.safetensors") if "blocks" in n]
    again: Any = PeftModel.from_pretrained(tiny(output=output), tmp_path).eval()
    assert torch.equal(again(x), after)
    plain = again.merge_and_unload()
    assert isinstance(plain, Piip)
    assert torch.allclose(plain(x), after, atol=1e-6)
    heads = (".head.",)
    assert all(torch.equal(plain.state_dict()[n], p) for n, p in frozen.items() if not any(h in n for h in heads))


def holders() -> dict[str, Any]:
    def maps() -> Any:
        return tiny(branches((32, 64), (64, 32), 2), n_interactions=2, features_only=True)

    return {
        "maps": maps(),
        "segmenter": Segmenter(maps(), 3, 32),
        "torchvision": FCN(torchvision_backbone(maps(), 32, "segmentation"), FCNHead(32, 3)),
    }


@pytest.mark.parametrize("name", ["maps", "segmenter", "torchvision"])
def test_what_holds_a_pyramid_is_adapted_around_its_branches(name, tmp_path):
    torch.manual_seed(0)
    base, x = holders()[name].eval(), pictures()
    state = {key: value.clone() for key, value in base.state_dict().items()}

    def output(model: Any) -> Any:
        found = model(x)
        return torch.cat([each.flatten() for each in (found.values() if isinstance(found, dict) else found)])

    before = output(base)
    model: Any = get_peft_model(base, interactions_config(base))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        output(model.train()).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    after = output(model.eval())
    assert not torch.allclose(after, before, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(output(model), before)
    model.save_pretrained(tmp_path)
    assert not [n for n in load_file(tmp_path / "adapter_model.safetensors") if ".branch1." in n or ".branch2." in n]
    again = holders()[name].eval()
    again.load_state_dict(state)
    assert torch.equal(output(load_adapter(again, str(tmp_path)).eval()), after)


def test_interactions_are_those_of_one_pyramid():
    with pytest.raises(ValueError, match="found ResNet, which holds none"):
        interactions_config(timm.create_model("resnet10t"))


def two_branches(**settings: Any) -> Any:
    return opened(tiny(branches((32, 64), (64, 32), 2), n_interactions=2, **settings))


def test_compiled_and_exported_are_the_same():
    model, x = two_branches(), pictures()
    expected = model(x)
    compiled = torch.compile(model, backend="aot_eager")
    assert torch.allclose(compiled(x), expected, atol=1e-5)
    program = torch.export.export(model, (x,))
    assert torch.allclose(program.module()(x), expected, atol=1e-5)
    assert not [node for node in program.graph.nodes if "peft_kernels" in str(node.target)]  # what other programs lack


@pytest.mark.parametrize("output", ["separate", "dense"])
def test_onnx_is_the_same(output, tmp_path):
    pytest.importorskip("onnxscript", reason="needs onnxscript, which torch.onnx.export stands on")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x = two_branches(output=output), pictures()
    program: Any = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for one, other in zip(found, model(x) if output == "dense" else [model(x)], strict=True):
        assert torch.allclose(torch.from_numpy(one), other, atol=1e-4)


def test_a_setting_that_timm_does_not_know_is_a_type_error():
    with pytest.raises(TypeError, match=r"no setting 'img_sizes' .did you mean"):
        timm.create_model("piip_vit_tsb", img_sizes=368, device="meta")
