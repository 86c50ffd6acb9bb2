"""Which modules are adapted, what an adapted module shows of itself, and how strong it is."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from peft_kernels.layer import features_of

from .capability import capability
from .case import Case, adapter_parameters, close, differs, run, same, tuner_layers


def _adapted(case: Case, **fields: Any) -> set[str]:
    names = adapter_parameters(case.attach(**fields))
    return {part for name in names for part in name.split(".") if part in ("layer", "other")}


@capability("excluded modules")
def excluded_modules(case: Case) -> None:
    """`exclude_modules` keeps a module out, by name and by regular expression."""
    both = [case.layer.target, case.layer.target.replace("layer", "other")]
    assert _adapted(case, target_modules=both) == {"layer", "other"}
    for excluded in (["other"], r"oth.*"):
        assert _adapted(case, target_modules=both, exclude_modules=excluded) == {"layer"}


@capability("regex targets")
def regex_targets(case: Case) -> None:
    """A string is a regular expression over whole names."""
    assert _adapted(case, target_modules=r"lay.r|oth") == {"layer"}
    assert _adapted(case, target_modules=r"(layer|other)") == {"layer", "other"}


@capability("effective tensors shown")
def effective_tensors(case: Case) -> None:
    """Sizes and tensors (`weight`, `bias`, ...) read from an adapted module are those it computes with."""
    adapted, base = case.trained(), case.base().layer
    layer: Any = adapted.get_base_model().layer
    if case.method.own and case.method.name != "linear_probe":
        assert (layer.in_features, layer.out_features) == features_of(base), "other sizes"
    merges = case.method.has("merge and unload", case.layer)
    plain: Any = copy.deepcopy(adapted).merge_and_unload().layer if merges else base
    for name in base._parameters:
        shown, expected = getattr(layer, name), getattr(plain, name)
        if shown is None or expected is None:
            assert shown is expected, f"{name} is {shown}, in effect {expected}"
        else:
            torch.testing.assert_close(shown, expected, msg=f"{name} is not the one in effect")


@capability("scale")
def scale(case: Case) -> None:
    """`set_scale`: 0 is the base model, 1 the trained one, between them the change is in proportion."""
    adapted = case.trained()
    base, trained = run(case.base(), case.x), run(adapted, case.x)
    layers = tuner_layers(adapted)
    outputs = {}
    for strength in (0.0, 0.5, 1.0):
        for layer in layers:
            layer.set_scale("default", strength)
        outputs[strength] = run(adapted, case.x)
        if strength == 0.5 and case.method.own and case.method.has("merge", case.layer):
            _halfway(case, adapted, outputs[strength])
    same(outputs[0.0], base)
    same(outputs[1.0], trained)
    differs(outputs[0.5], base)
    differs(outputs[0.5], trained)
    for factor, undo in ((0.5, 0.5), (0.25, None)):
        for layer in layers:
            layer.scale_layer(factor)
        differs(run(adapted, case.x), trained)
        for layer in layers:
            layer.unscale_layer(undo)
        same(run(adapted, case.x), trained)


def _halfway(case: Case, adapted: PeftModel, output: Tensor) -> None:
    """Merged at half strength, every tensor lies half-way between the base one and the trained one."""
    half, whole = copy.deepcopy(adapted).merge_and_unload(), case.trained().merge_and_unload()
    close(run(half, case.x), output)
    start, end = dict(case.base().named_parameters()), dict(whole.named_parameters())
    for name, found in half.named_parameters():
        close(found, (start.get(name, 0.0) + end[name]) / 2)
