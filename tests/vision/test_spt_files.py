"""SPT's adapters merged, saved and loaded; files that do not fit."""

from __future__ import annotations

import warnings
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

import vision_peft as vp
from tests.kernels.saved_adapters import WEIGHTS, edit, pictures, small_model, structure
from tests.vision.spt_models import config, trained


def test_two_adapters_with_other_plans_add_up_and_come_apart() -> None:
    model = small_model()
    plain = {name: p.detach().clone() for name, p in model.named_parameters()}
    adapted: Any = get_peft_model(model, config(model, 0, modules_to_save=[]), "one")  # type: ignore[arg-type]
    trained(adapted)
    adapted.add_adapter("two", config(small_model(), 1, modules_to_save=[]))
    adapted.set_adapter("two")
    trained(adapted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted.base_model.set_adapter(["one", "two"])
    both = adapted(pictures())
    adapted.merge_adapter()
    torch.testing.assert_close(adapted(pictures()), both, rtol=1e-5, atol=1e-5)
    adapted.unmerge_adapter()
    for name, p in adapted.get_base_model().named_parameters():
        name = name.replace(".base_layer", "")
        if name in plain:
            assert torch.equal(p, plain[name]), name


def test_bottlenecks_refuse_to_merge_and_nothing_is_merged() -> None:
    model = small_model()
    adapted: Any = trained(get_peft_model(model, config(model, structured="adapter")))  # type: ignore[arg-type]
    before = adapted(pictures())
    for merge in (adapted.merge_adapter, adapted.merge_and_unload):
        with pytest.raises(
            NotImplementedError, match=r"'default' cannot be merged: an activation .* structured=\"lora\""
        ):
            merge()
    assert torch.equal(adapted(pictures()), before)


@pytest.fixture
def folder(tmp_path: Any) -> Any:
    model = small_model()
    trained(get_peft_model(model, config(model))).save_pretrained(str(tmp_path), save_embedding_layers=False)  # type: ignore[arg-type]
    return tmp_path


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((7, 7), "holds the index 7 after 7; they must ascend"),
        ((9, 4), "the index 4 after 9"),
        ((0, 10**6), "expected 0 to"),
    ],
)
def test_damaged_places_are_refused(folder: Any, values: tuple[int, int], said: str) -> None:
    key = next(key for key, t in load_file(folder / WEIGHTS).items() if key.endswith("weight.index") and len(t) > 1)
    edit(folder, lambda tensors: tensors[key][:2].copy_(torch.tensor(values)))
    model = small_model()
    before = structure(model)
    with pytest.raises(vp.AdapterError, match=said) as refused:
        vp.load_adapter(model, folder)
    assert "adapter_model.safetensors" in str(refused.value)
    assert key in str(refused.value)
    assert structure(model) == before


def test_adapter_for_another_architecture_is_refused(folder: Any) -> None:
    model = small_model(embed_dim=64)
    before = structure(model)
    with pytest.raises(vp.AdapterError):
        vp.load_adapter(model, folder)
    assert structure(model) == before


def test_plan_without_places_does_not_run(folder: Any) -> None:
    made = peft.PeftConfig.from_pretrained(str(folder))
    made.inference_mode = False
    adapted = get_peft_model(small_model(), made)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="trained entries are not known: a plan holds only how many"):
        adapted(pictures())
    loaded = PeftModel.from_pretrained(small_model(), str(folder), is_trainable=True)
    loaded(pictures()).sum().backward()
