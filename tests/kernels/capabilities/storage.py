"""Files, copies and pickles of adapters, and what is trained and saved beside them."""

from __future__ import annotations

import copy
import pickle
import tempfile

import pytest
import torch
from peft import PeftModel

from vision_peft import hotswap_adapter

from .capability import capability
from .case import FIRST, SECOND, Case, adapter_parameters, differs, gradients, move, quiet, run, same


@capability("save and load")
def save_and_load(case: Case) -> None:
    """A saved adapter, loaded on a fresh base under another name, gives the same bits."""
    adapted = case.trained().requires_grad_(False)  # products may round otherwise for trainable weights
    with tempfile.TemporaryDirectory() as folder:
        adapted.save_pretrained(folder)
        loaded = quiet(PeftModel.from_pretrained, case.base(), folder, adapter_name="renamed")
    same(run(loaded, case.x), run(adapted, case.x))
    mine, other = adapter_parameters(adapted), adapter_parameters(loaded, "renamed")
    assert len(mine) == len(other)
    for one, two in zip(mine.values(), other.values(), strict=True):
        same(one, two)
        assert not two.requires_grad  # loaded for inference


@capability("low-memory loading")
def low_memory_loading(case: Case) -> None:
    """Loading with `low_cpu_mem_usage` gives the same bits and leaves nothing on the meta device."""
    adapted = case.trained().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        adapted.save_pretrained(folder)
        loaded = quiet(PeftModel.from_pretrained, case.base(), folder, low_cpu_mem_usage=True)
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
    same(run(loaded, case.x), run(adapted, case.x))


@capability("hot swap")
def hot_swap(case: Case) -> None:
    """`hotswap_adapter` puts the values of a file into the adapter in place."""
    adapted, other = case.trained(), case.attach()
    move(other, FIRST)
    move(other, FIRST)
    held = list(adapter_parameters(adapted).values())
    before = run(adapted, case.x)
    with tempfile.TemporaryDirectory() as folder:
        other.save_pretrained(folder)
        hotswap_adapter(adapted, folder, FIRST)
    differs(run(adapted, case.x), before)
    same(run(adapted, case.x), run(other.eval(), case.x))
    assert all(one is two for one, two in zip(held, adapter_parameters(adapted).values(), strict=True))


@capability("deepcopy")
def deepcopy(case: Case) -> None:
    """A deep copy gives the same bits and shares nothing."""
    adapted = case.trained()
    copied, before = copy.deepcopy(adapted), run(adapted, case.x)
    same(run(copied, case.x), before)
    for parameter in copied.parameters():
        parameter.data.fill_(1.0)
    same(run(adapted, case.x), before)
    differs(run(copied, case.x), before)


@capability("pickle")
def pickles(case: Case) -> None:
    """Pickling keeps the bits, the names and the active adapters."""
    adapted = case.trained(FIRST, SECOND)
    restored = pickle.loads(pickle.dumps(adapted))
    for name in (FIRST, SECOND):
        for model in (adapted, restored):
            model.set_adapter(name)
        same(run(restored, case.x), run(adapted, case.x))
    assert gradients(restored, case.x).keys() == gradients(adapted, case.x).keys()


@capability("modules to save")
def modules_to_save(case: Case) -> None:
    """The classifier is trained in a copy, saved, and at last part of the plain model."""
    adapted = case.attach(modules_to_save=_with(case, "head"))
    move(adapted)
    found = gradients(adapted.eval(), case.x)
    assert {n for n in found if n.startswith("base_model.model.head.")} == {
        f"base_model.model.head.modules_to_save.{FIRST}.{leaf}" for leaf in ("weight", "bias")
    }
    with adapted.disable_adapter():
        same(run(adapted, case.x), run(case.base(), case.x))
    _reloads(case, adapted)


@capability("raw parameters to save")
def raw_parameters(case: Case) -> None:
    """A parameter of the model itself is trained in a copy, saved and merged."""
    adapted = case.attach(modules_to_save=_with(case, "token"))
    trained = [name for name in adapter_parameters(adapted) if name.endswith(".token")]
    assert trained, "the parameter was ignored"
    move(adapted)
    assert gradients(adapted.eval(), case.x)[trained[0]].abs().sum() > 0
    same(dict(adapted.named_parameters())["base_model.model.token"], case.base().token)
    with adapted.disable_adapter():
        same(run(adapted, case.x), run(case.base(), case.x))
    _reloads(case, adapted)


@capability("unmatched names raise")
def unmatched_names(case: Case) -> None:
    """A name in `modules_to_save` that matches nothing raises, with the nearest right one."""
    with pytest.raises(ValueError, match=r"'tokem', which is neither .* \(did you mean 'token'\?\)"):
        case.attach(modules_to_save=_with(case, "tokem"))


def _with(case: Case, name: str) -> list[str]:
    return [case.layer.target, name] if case.method.name == "linear_probe" else [name]


def _reloads(case: Case, adapted: PeftModel) -> None:
    output = run(adapted.requires_grad_(False), case.x)
    with tempfile.TemporaryDirectory() as folder:
        adapted.save_pretrained(folder)
        same(run(quiet(PeftModel.from_pretrained, case.base(), folder), case.x), output)
    if case.method.has("merge and unload", case.layer):
        plain = adapted.merge_and_unload()
        torch.testing.assert_close(run(plain, case.x), output)
        extra = set(plain.state_dict()) - set(case.base().state_dict())
        assert extra <= case.method.gains(case.layer), f"extra keys {extra}"
