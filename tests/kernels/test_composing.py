"""Several methods on one model: trained, saved, switched and merged together, whatever their order."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftConfig, get_peft_model
from torch import nn

import vision_peft as vp
from peft_kernels.composing import ComposedModel
from tests.vision.architectures import images, small

from .saved_adapters import structure

MODEL = "vit_tiny_patch16_224"
METHODS: dict[str, Callable[[], PeftConfig]] = {
    "vpt": lambda: vp.VptConfig(num_tokens=2, dropout=0.0),
    "shallow": lambda: vp.VptConfig(num_tokens=2, deep=False, dropout=0.0),
    "ssf": vp.SsfConfig,
    "bitfit": vp.BitFitConfig,
    "lora": lambda: peft.LoraConfig(r=2, init_lora_weights=False),
    "dora": lambda: peft.LoraConfig(r=2, use_dora=True, init_lora_weights=False),
    "norms": peft.LNTuningConfig,
    "snell": lambda: vp.SnellConfig(r=2, dropout=0.0, drop_path=0.0),
    "post": lambda: vp.AdapterPlusConfig(r=2, drop_path=0.0),
    "parallel": lambda: vp.AdapterPlusConfig(r=2, drop_path=0.0, position="parallel"),
}
MERGING = [("bitfit", "lora"), ("norms", "snell"), ("lora", "norms")]
KEPT = [("vpt", "ssf"), ("lora", "vpt"), ("shallow", "norms"), ("post", "snell"), ("vpt", "parallel")]
COLLIDING = [
    ("bitfit", "dora", "blocks.0.attn.qkv"),
    ("ssf", "snell", "blocks.0.attn.qkv"),
    ("vpt", "post", "blocks.0"),
    ("norms", "bitfit", "blocks.0.norm1"),
]


def composed(*names: str, **options: Any) -> ComposedModel:
    """The methods on the small model, every trained parameter moved away from its start."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = vp.compose(small(MODEL), {name: METHODS[name]() for name in names}, **options).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def run(model: nn.Module) -> torch.Tensor:
    return model(images())


@torch.no_grad()
def features(model: Any) -> torch.Tensor:
    return model.forward_features(images())


@pytest.mark.parametrize(("first", "second"), MERGING + KEPT)
def test_both_methods_train_and_the_base_stays(first: str, second: str) -> None:
    model = composed(first, second).train()
    base = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    before = {n: p.detach().clone() for n, p in trained.items()}
    optimiser = torch.optim.AdamW(trained.values(), lr=1e-2)
    model(images()).square().sum().backward()
    optimiser.step()
    for name in (first, second):
        assert [n for n in trained if name in n.split(".")]
    assert not [n for n, p in trained.items() if torch.equal(p, before[n])]
    assert all(torch.equal(p, base[n]) for n, p in model.named_parameters() if n in base)
    heads = [n for n in trained if ".head." in n]
    assert len(heads) == 2


@pytest.mark.parametrize(("first", "second"), MERGING + KEPT)
def test_parts_are_saved_and_loaded_together_and_alone_in_any_order(first: str, second: str, tmp_path: Path) -> None:
    model = composed(first, second)
    both = run(model)
    model.save_pretrained(str(tmp_path))
    for names in ((first, second), (second, first)):
        loaded = vp.compose(small(MODEL), {name: tmp_path / name for name in names}, is_trainable=False)
        torch.testing.assert_close(run(loaded), both)
        assert not loaded.training
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
    for name in (first, second):
        model.set_adapter(name)
        alone = vp.load_adapter(small(MODEL), tmp_path / name)
        torch.testing.assert_close(run(alone), run(model))
        assert not torch.allclose(run(alone), both)


@pytest.mark.parametrize(("first", "second"), MERGING + KEPT)
def test_switching_off_and_unloading_give_the_base_model(first: str, second: str) -> None:
    base, plain = run(small(MODEL)), structure(small(MODEL))
    model = composed(first, second)
    both = run(model)
    with model.disable_adapter():
        assert torch.equal(run(model), base)
    model.set_adapter(second)
    model.set_adapter([first, second])
    assert torch.equal(run(model), both)
    assert torch.equal(run(copy.deepcopy(model)), both)
    unloaded = model.unload()  # PEFT leaves the trained head
    assert torch.equal(features(unloaded), features(small(MODEL)))
    assert structure(unloaded)["types"] == plain["types"]


@pytest.mark.parametrize(("first", "second"), [*MERGING, *((b, a) for a, b in MERGING)])
def test_merged_model_is_plain_and_has_the_outputs_of_both(first: str, second: str) -> None:
    model = composed(first, second)
    both = run(model)
    plain = model.merge_and_unload()
    torch.testing.assert_close(run(plain), both)
    assert structure(plain)["types"] == structure(small(MODEL))["types"]
    assert plain.state_dict().keys() == small(MODEL).state_dict().keys()


@pytest.mark.parametrize(("first", "second"), KEPT)
def test_methods_that_cannot_merge_refuse_for_all_and_change_nothing(first: str, second: str) -> None:
    model = composed(first, second)
    both = run(model)
    with pytest.raises(NotImplementedError, match=r"cannot be merged: (prompts are tokens|an activation function)"):
        model.merge_and_unload()
    assert torch.equal(run(model), both)


def test_one_part_merges_beside_prompts() -> None:
    model = composed("vpt", "ssf")
    both = run(model)
    model.merge_adapter(adapter_names=["ssf"])
    torch.testing.assert_close(run(model), both)
    model.unmerge_adapter()
    assert torch.equal(run(model), both)


def test_three_methods_go_together() -> None:
    model = composed("lora", "vpt", "bitfit")
    assert list(model.active_adapters) == ["lora", "vpt", "bitfit"]
    model.delete_adapter("vpt")
    expected = composed("lora", "vpt", "bitfit")
    expected.set_adapter(["lora", "bitfit"])
    assert torch.equal(features(model), features(expected))


@pytest.mark.parametrize(("first", "second", "module"), COLLIDING)
@pytest.mark.parametrize("turned", [False, True])
def test_two_methods_for_one_module_are_refused_and_change_nothing(
    first: str, second: str, module: str, turned: bool
) -> None:
    model = small(MODEL)
    before = structure(model)
    names = (second, first) if turned else (first, second)
    configs = {name: METHODS[name]() for name in names}
    with pytest.raises(ValueError, match="is a target of both") as refused:
        vp.compose(model, configs)
    assert re.findall(r"'([^']+)'", str(refused.value))[0] in (module, "norm", "blocks.0.norm1")
    assert structure(model) == before
    if (first, second) == ("ssf", "snell"):
        configs["ssf"].exclude_modules = r".*\.(attn|mlp)\..*"  # type: ignore[attr-defined]
        vp.compose(model, configs)(images()).sum().backward()


def test_tensors_of_a_whole_module_and_modules_in_it_are_refused() -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    before = structure(model)
    parts = {
        "all": vp.FullConfig(target_modules=["self_attn"], modules_to_save=[]),
        "inner": vp.SsfConfig(target_modules=["out_proj"], modules_to_save=[]),
    }
    with pytest.raises(
        ValueError, match=r"'all' changes tensors of '0\.self_attn' as a whole, in which 'inner' adapts"
    ):
        vp.compose(model, parts)
    assert structure(model) == before


@pytest.mark.parametrize("turned", [False, True])
def test_modules_trained_in_full_belong_to_one_method(turned: bool, tmp_path: Path) -> None:
    order = (lambda items: dict(reversed(items.items()))) if turned else dict
    model = small(MODEL)
    before = structure(model)
    houlsby = {"houlsby": vp.AdapterPlusConfig(position="houlsby", train_norms=True), "ssf": vp.SsfConfig()}
    with pytest.raises(ValueError, match=r"'ssf' adapts 'norm', which another method trains in full"):
        vp.compose(model, order(houlsby))
    for name in ("vpt", "ssf"):
        get_peft_model(small(MODEL), METHODS[name]()).save_pretrained(str(tmp_path / name))
    with pytest.raises(ValueError, match=r"both '(vpt|ssf)' and '(vpt|ssf)' train 'head' in full"):
        vp.compose(model, order({"vpt": tmp_path / "vpt", "ssf": tmp_path / "ssf"}))
    assert structure(model) == before
    mixed = vp.compose(model, order({"vpt": tmp_path / "vpt", "ssf": vp.SsfConfig()}))
    heads = [name for name, parameter in mixed.named_parameters() if ".head." in name and parameter.requires_grad]
    assert [name.split(".")[-2] for name in heads] == ["vpt", "vpt"]


def test_what_compose_does_not_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two methods or more, found 1"):
        vp.compose(small(MODEL), {"vpt": vp.VptConfig()})
    with pytest.raises(ValueError, match="carries adapters already"):
        vp.compose(get_peft_model(small(MODEL), vp.VptConfig()), {"ssf": vp.SsfConfig(), "vpt": vp.VptConfig()})
    with pytest.raises(ValueError, match=r"'probe' \(LinearProbeConfig\) adapts no modules"):
        vp.compose(small(MODEL), {"vpt": vp.VptConfig(), "probe": vp.LinearProbeConfig()})
    with pytest.raises(ValueError, match="give 'more' to `compose` too"):
        composed("vpt", "ssf").add_adapter("more", vp.SsfConfig())
    with pytest.raises(ValueError, match="Adapter vtp not found; the model has vpt, ssf"):
        composed("vpt", "ssf").set_adapter(["ssf", "vtp"])
    model = composed("vpt", "ssf")
    model.save_pretrained(str(tmp_path))
    plain = small(MODEL, embed_dim=32)
    before = structure(plain)
    with pytest.raises(vp.AdapterError, match="is for another model"):
        vp.compose(plain, {"vpt": tmp_path / "vpt", "ssf": tmp_path / "ssf"})
    assert structure(plain) == before
