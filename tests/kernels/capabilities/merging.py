"""Merging adapters into the base tensors and taking them out again."""

from __future__ import annotations

import pytest
import torch

from .capability import capability
from .case import FIRST, SECOND, Case, adapter_parameters, close, differs, quiet, run, same, tuner_layers


def _tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if not {FIRST, SECOND} & set(n.split("."))}


def _equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in found.items():
        same(tensor, expected[name])


@capability("merge")
def merge(case: Case) -> None:
    """The merged model gives the adapted output through its base tensors alone."""
    adapted = case.trained()
    before = run(adapted, case.x)
    adapted.merge_adapter()
    close(run(adapted, case.x), before)
    assert all(layer.merged_adapters == [FIRST] for layer in tuner_layers(adapted))
    for parameter in adapter_parameters(adapted).values():
        parameter.data.fill_(torch.nan)  # not looked at any more
    close(run(adapted, case.x), before)


@capability("safe merge")
def safe_merge(case: Case) -> None:
    """NaN in an adapter is found before anything is written; a sound adapter merges."""
    adapted = case.trained()
    before = _tensors(adapted)
    parameter = list(adapter_parameters(adapted).values())[-1]
    value = parameter.detach().clone()
    parameter.data.view(-1)[-1] = torch.nan
    with pytest.raises(ValueError, match="NaNs detected in the merged weights"):
        adapted.merge_adapter(safe_merge=True)
    _equal(_tensors(adapted), before)
    assert not any(layer.merged for layer in tuner_layers(adapted))
    parameter.data.copy_(value)
    output = run(adapted, case.x)
    adapted.merge_adapter(safe_merge=True)
    close(run(adapted, case.x), output)


@capability("unmerge")
def unmerge(case: Case) -> None:
    """Unmerging restores the bits of the base tensors and of the adapted output; so does disabling."""
    adapted = case.trained()
    before, output = _tensors(adapted), run(adapted, case.x)
    adapted.merge_adapter()
    adapted.unmerge_adapter()
    _equal(_tensors(adapted), before)
    same(run(adapted, case.x), output)
    adapted.merge_adapter()
    with quiet(adapted.disable_adapter):
        same(run(adapted, case.x), run(case.base(), case.x))
    _equal(_tensors(adapted), before)


@capability("merge and unload")
def merge_and_unload(case: Case) -> None:
    """A plain model comes back: types, keys, hooks and attributes as before, the adapted output."""
    adapted = case.trained()
    output = run(adapted, case.x)
    plain, base = adapted.merge_and_unload(), case.base()
    close(run(plain, case.x), output)
    gained = set(plain.state_dict()) - set(base.state_dict())
    assert gained <= case.method.gains(case.layer), f"extra keys {gained}"
    for (name, found), (_, expected) in zip(plain.named_modules(), base.named_modules(), strict=True):
        assert type(found) is type(expected), name
        assert set(found.__dict__) == set(expected.__dict__), name
        assert not found._forward_hooks, name
        assert not found._forward_pre_hooks, name


@capability("unload")
def unload(case: Case) -> None:
    """Unloading gives the base model back, bit for bit."""
    plain = case.trained().unload()
    assert list(plain.state_dict()) == list(case.base().state_dict()), "other keys"
    same(run(plain, case.x), run(case.base(), case.x))


@capability("several merged")
def several_merged(case: Case) -> None:
    """Two adapters merged one after the other give what both give when active; unmerging restores the bits."""
    adapted = case.trained(FIRST, SECOND)
    quiet(adapted.base_model.set_adapter, [FIRST, SECOND])
    before, both = _tensors(adapted), run(adapted, case.x)
    adapted.merge_adapter(adapter_names=[FIRST])
    differs(run(adapted, case.x), both)
    quiet(adapted.merge_adapter, adapter_names=[SECOND])
    close(run(adapted, case.x), both)
    adapted.unmerge_adapter()
    _equal(_tensors(adapted), before)
    close(run(adapted.merge_and_unload(adapter_names=[FIRST, SECOND]), case.x), both)
