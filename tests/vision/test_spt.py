"""SPT: what is trained and what never moves."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from peft_kernels.budget import Plan
from tests.kernels.saved_adapters import pictures, small_model
from tests.vision.spt_models import TOKEN, config, trained
from vision_peft.methods.spt.adapter import SptLayer
from vision_peft.methods.spt.places import places


def test_only_chosen_entries_move() -> None:
    model = small_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    made = config(model, structured_only=False, rank=64, budget=5_000)  # a rank that no matrix has the hits for
    plan = Plan.read(made.plan or {})
    assert plan.entries
    assert not plan.ranks
    known = places(model, made)
    adapted = trained(get_peft_model(model, made), steps=10)  # type: ignore[arg-type]
    assert all(p.grad is None for n, p in adapted.named_parameters() if "base_layer" in n)
    merged = adapted.merge_and_unload()
    moved: dict[str, Tensor] = {
        name: (p != before[name]).flatten() for name, p in merged.named_parameters() if name in before
    }
    allowed = {name: torch.zeros(p.numel(), dtype=torch.bool) for name, p in before.items()}
    for name, place in known.items():
        where = made.positions.get(name, torch.arange(place.size) if name in plan.full else None)
        if where is not None:
            allowed[place.parameter][where + place.start * place.columns] = True
    for name, changed in moved.items():
        if not name.startswith("head"):
            assert not (changed & ~allowed[name]).any(), name
    assert sum(int(changed.sum()) for changed in moved.values()) > 0.9 * sum(plan.entries.values())


def test_start_is_the_base_model_bit_for_bit() -> None:
    for structured in ("lora", "adapter"):
        model = small_model(**TOKEN)
        before = model(pictures())
        assert torch.equal(get_peft_model(model, config(model, structured=structured)).eval()(pictures()), before)  # type: ignore[arg-type]


def test_branches_are_dropped_while_training_only() -> None:
    model = small_model()
    adapted = trained(get_peft_model(model, config(model, module_dropout=0.3, module_drop_path=0.3, rank=4)))  # type: ignore[arg-type]
    assert torch.equal(adapted(pictures()), adapted(pictures()))
    adapted.train()
    assert not torch.equal(adapted(pictures()), adapted(pictures()))
    layers = {name: m for name, m in adapted.named_modules() if isinstance(m, SptLayer)}
    dropouts = {name: m.adapters["default"].dropout for name, m in layers.items() if name.endswith("attn.proj")}
    assert set(dropouts.values()) == {0.0}


@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 12), (2, 3, 4, 12), (0, 3, 12)])
@pytest.mark.parametrize("structured", ["lora", "adapter"])
def test_inputs_of_any_number_of_dimensions(shape: tuple[int, ...], structured: str) -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(12, 8))
    made = config(base, budget=0.5, rank=2, structured=structured, modules_to_save=[])
    adapted = get_peft_model(base, made).train()  # type: ignore[arg-type]
    x = torch.randn(shape, requires_grad=True)
    y = adapted(x)
    assert y.shape == (*shape[:-1], 8)
    y.sum().backward()
    assert x.grad is not None
