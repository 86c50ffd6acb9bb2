"""The table of capabilities, cell by cell, and that the page in docs says the same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from peft_kernels import reparam, tensors, tuner
from peft_kernels.layer import AdapterLayer

from .capabilities.case import Case
from .capabilities.layers import LAYERS
from .capabilities.methods import METHODS
from .capabilities.table import CAPABILITIES, cells, prove, render

PAGE = Path(__file__).parents[2] / "docs" / "tables" / "capabilities.md"


@pytest.mark.parametrize(("method", "layer", "capability"), [pytest.param(*c, id=" - ".join(c)) for c in cells()])
def test_check_gives_what_the_table_says(method: str, layer: str, capability: str) -> None:
    prove(method, layer, capability)


def test_page_is_the_table() -> None:
    found = PAGE.read_text()
    assert found == render(), "write it again: python -m tests.kernels.capabilities --write docs/tables/capabilities.md"


def keep_the_changed_tensors(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reparam.ReparamLayer, "adapted_forward", reparam.ReparamLayer._plain_forward)


def run_although_disabled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(AdapterLayer, "enable_adapters", lambda layer, enabled: None)


def ignore_failures(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tuner, "all_or_nothing", lambda *_: nullcontext())


def merge_nan(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reparam.ReparamLayer, "merge", _without_safety(reparam.ReparamLayer.merge))


def _without_safety(merge: Callable[..., None]) -> Callable[..., None]:
    return lambda layer, safe_merge=False, adapter_names=None: merge(layer, False, adapter_names)


def subtract_to_unmerge(patch: pytest.MonkeyPatch) -> None:
    write = reparam.write_tensor
    patch.setattr(reparam, "write_tensor", lambda owner, name, value: write(owner, name, value * (1 + 1e-6)))


def merge_into_the_adapter(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reparam.nn.Parameter, "clone", lambda parameter: parameter)


def show_the_base_tensors(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reparam.ReparamLayer, "effective_tensor", lambda layer, name: getattr(layer.base_layer, name))


def forget_raw_parameters(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tensors.OwnedTensors, "_running", lambda layer, name: [])


def scale_twice(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(AdapterLayer, "set_scale", lambda layer, name, scale: layer.scaling.update({name: 2 * scale}))


@pytest.mark.parametrize(
    ("capability", "method", "layer", "spoil"),
    [
        ("recompute", "snell", "MultiheadAttention", keep_the_changed_tensors),
        ("disable", "ssf", "Linear", run_although_disabled),
        ("all or nothing", "bitfit", "Linear", ignore_failures),
        ("all or nothing", "linear_probe", "Linear", ignore_failures),
        ("safe merge", "snell", "Linear", merge_nan),
        ("unmerge", "snell", "Linear", subtract_to_unmerge),
        ("merge", "bitfit", "Linear", merge_into_the_adapter),
        ("effective tensors shown", "ssf", "Linear", show_the_base_tensors),
        ("raw parameters to save", "ssf", "Linear", forget_raw_parameters),
        ("scale", "snell", "Conv2d", scale_twice),
    ],
)
def test_check_notices(
    capability: str,
    method: str,
    layer: str,
    spoil: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        CAPABILITIES[capability](Case(METHODS[method], LAYERS[layer]))
