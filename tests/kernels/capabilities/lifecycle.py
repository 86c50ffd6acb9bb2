"""Attaching, running, switching, disabling, deleting: what every adapter goes through."""

from __future__ import annotations

from typing import Any

import torch
from peft import get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils.other import ModulesToSaveWrapper
from torch.func import functional_call

from peft_kernels.reparam import ReparamLayer

from .capability import capability
from .case import (
    FIRST,
    SECOND,
    Case,
    adapter_parameters,
    close,
    differs,
    gradients,
    move,
    quiet,
    run,
    same,
    state,
    tuner_layers,
)


@capability("attach")
def attach(case: Case) -> None:
    """An adapter is put on the module, and on no other; the base model is frozen, the adapted one runs."""
    adapted = case.attach()
    parameters = adapter_parameters(adapted)
    assert parameters, "no adapter was attached"
    assert not [name for name in parameters if ".other." in name], "the other module was adapted too"
    trainable = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trainable == set(parameters)
    run(adapted, case.x)


@capability("forward and gradient")
def forward_and_gradient(case: Case) -> None:
    """The output changes, every adapter parameter gets a gradient, and it is that of the effective tensors."""
    adapted = case.trained()
    differs(run(adapted, case.x), run(case.base(), case.x))
    found = gradients(adapted, case.x)
    assert set(found) == set(adapter_parameters(adapted))
    unmoved = [name for name, gradient in found.items() if not gradient.abs().sum() > 0]
    assert not unmoved, f"no gradient at {unmoved}"
    for layer in tuner_layers(adapted):
        changed = layer.effective_tensors() if isinstance(layer, ReparamLayer) else {}
        if changed and all(tensor is not None for tensor in changed.values()):
            layer.adapted_forward = lambda *args, _layer=layer: functional_call(  # type: ignore[method-assign]
                _layer.base_layer, _layer.effective_tensors(), args
            )
    for name, gradient in gradients(adapted, case.x).items():
        close(found[name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())


@capability("several at once")
def several_at_once(case: Case) -> None:
    """Two adapters run together: the output is that of neither alone, and both get gradients."""
    adapted = case.trained(FIRST, SECOND)
    alone = []
    for name in (FIRST, SECOND):
        adapted.set_adapter(name)
        alone.append(run(adapted, case.x))
    quiet(adapted.base_model.set_adapter, [FIRST, SECOND])
    both = run(adapted, case.x)
    for output in (*alone, run(case.base(), case.x)):
        differs(both, output)
    found = gradients(adapted, case.x)
    assert set(found) == {*adapter_parameters(adapted, FIRST), *adapter_parameters(adapted, SECOND)}, "frozen"
    assert all(gradient.abs().sum() > 0 for gradient in found.values()), "no gradient"


@capability("several in one batch")
def several_in_one_batch(case: Case) -> None:
    """Each sample of a batch names its adapter."""
    adapted = case.trained(FIRST, SECOND)
    x = torch.cat([case.x, case.x])
    names = [FIRST] * len(case.x) + [SECOND] * len(case.x)
    with torch.no_grad():
        mixed = adapted(x, adapter_names=names)
    for part, name in zip(mixed.chunk(2), (FIRST, SECOND), strict=True):
        adapted.set_adapter(name)
        close(part, run(adapted, case.x))


@capability("switch")
def switch(case: Case) -> None:
    """Each of two adapters, when active, gives what it gives alone; only the active one is trainable."""
    adapted = case.trained(FIRST, SECOND)
    outputs = {}
    for name in (FIRST, SECOND, FIRST):
        adapted.set_adapter(name)
        outputs[name] = run(adapted, case.x)
        trainable = {key for key, parameter in adapted.named_parameters() if parameter.requires_grad}
        assert trainable == set(adapter_parameters(adapted, name))
    differs(outputs[FIRST], outputs[SECOND])
    same(outputs[FIRST], run(case.trained(), case.x))


@capability("disable")
def disable(case: Case) -> None:
    """Without its adapter the model gives the base output, bit for bit, and afterwards the adapted one again."""
    adapted = case.trained()
    before = run(adapted, case.x)
    with adapted.disable_adapter():
        same(run(adapted, case.x), run(case.base(), case.x))
    same(run(adapted, case.x), before)


@capability("delete")
def delete(case: Case) -> None:
    """A deleted adapter leaves nothing behind; without any the model gives the base output."""
    adapted = case.trained(FIRST, SECOND)
    adapted.set_adapter(SECOND)
    second = run(adapted, case.x)
    quiet(adapted.delete_adapter, FIRST)
    assert not adapter_parameters(adapted, FIRST)
    same(run(adapted, case.x), second)
    assert quiet(adapted.delete_adapter, SECOND) is None
    assert not adapter_parameters(adapted, SECOND)
    same(run(adapted.base_model, case.x), run(case.base(), case.x))


@capability("inject in a plain model")
def inject(case: Case) -> None:
    """PEFT's `inject_adapter_in_model` gives the same output and state, which goes into another injected model."""
    adapted = case.trained()
    models = [quiet(inject_adapter_in_model, case.method.config(case.layer), case.base(), FIRST) for _ in range(2)]
    move(models[0])
    saved = get_peft_model_state_dict(models[0], adapter_name=FIRST)
    assert {f"base_model.model.{key}" for key in saved} == set(get_peft_model_state_dict(adapted))
    missed = set_peft_model_state_dict(models[1], saved, adapter_name=FIRST)
    assert not missed.unexpected_keys
    same(run(models[1].eval(), case.x), run(models[0].eval(), case.x))
    differs(run(models[1], case.x), run(case.base(), case.x))


@capability("random start")
def random_start(case: Case) -> None:
    """The method's own start is near the base model, the random one is not, and differs from seed to seed."""
    base = run(case.base(), case.x)
    close(run(case.attach().eval(), case.x), base, rtol=0.2, atol=0.2)
    outputs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        adapted = case.method.start_at_random(case.layer, case.base())
        outputs.append(run(adapted.eval(), case.x))
    differs(outputs[0], base, by=0.01)
    differs(outputs[0], outputs[1], by=0.01)


@capability("all or nothing")
def all_or_nothing(case: Case) -> None:
    """Attaching that fails half-way leaves the model, and an adapter it already has, as they were."""
    both = case.method.both(case.layer)
    model = case.base()
    before = state(model)
    with _FailingAt(case, 2):
        assert _fails(case.attach, model, **both)
    assert state(model) == before, "a failed attachment changed the model"
    adapted = case.trained()
    before = state(adapted)
    with _FailingAt(case, 2):
        assert _fails(adapted.add_adapter, SECOND, case.method.config(case.layer, **both))
    assert state(adapted) == before, "a failed attachment changed the model"
    assert list(adapted.peft_config) == [FIRST]


class _FailingAt:
    """Within, the tuner fails at its n-th target."""

    def __init__(self, case: Case, target: int) -> None:
        tuner = PEFT_TYPE_TO_TUNER_MAPPING[case.method.config(case.layer).peft_type]  # type: ignore[index]
        # The probe has no targets: PEFT copies its modules by this class.
        probe = case.method.name == "linear_probe"
        self.owner, self.step = (ModulesToSaveWrapper, "update") if probe else (tuner, "_create_and_replace")
        self.target = target

    def __enter__(self) -> None:
        self.original, calls = getattr(self.owner, self.step), []

        def step(*args: Any, **kwargs: Any) -> None:
            calls.append(1)
            if len(calls) == self.target:
                raise MemoryError("half-way")
            self.original(*args, **kwargs)

        setattr(self.owner, self.step, step)

    def __exit__(self, *_: object) -> None:
        setattr(self.owner, self.step, self.original)


def _fails(call: Any, *args: Any, **kwargs: Any) -> bool:
    try:
        quiet(call, *args, **kwargs)
    except MemoryError:
        return True
    return False
