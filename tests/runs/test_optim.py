"""Learning rate and weight decay of every step and parameter."""

import pytest
import torch
from torch import nn

from peft_kernels.registry import method
from peft_runs.optim import build_optimizer, build_schedule
from peft_runs.recipe import OptimSpec
from vision_peft.models import vit_mini


def rates(spec: OptimSpec, steps: int, per_epoch: int) -> list[float]:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=spec.lr)
    schedule = build_schedule(optimizer, spec, steps, per_epoch)
    made = []
    for step in range(1, steps + 1):
        schedule.step_update(step)
        made.append(optimizer.param_groups[0]["lr"])
    return made


def test_warm_up_then_cosine_to_the_end() -> None:
    made = rates(OptimSpec(lr=1.0, min_lr=0.1, warmup_epochs=1), 30, 10)
    assert made[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert made[19] == pytest.approx(0.55)  # half-way down
    assert made == [*sorted(made[:10]), *sorted(made[10:], reverse=True)]
    assert made[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_have_a_rate(steps: int) -> None:
    made = rates(OptimSpec(lr=1.0, warmup_epochs=5), steps, 1)
    assert made[0] > 0
    assert max(made) <= 1


def test_only_matrices_decay() -> None:
    model = vit_mini()
    optimizer = build_optimizer(model, model, OptimSpec(weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert len(decay) == len(named)
    for name, parameter in named.items():
        expected = 0.0 if parameter.ndim < 2 or name == "pos_embed" else 0.3
        assert decay[id(parameter)] == expected, name


def test_entries_of_matrices_decay_though_a_vector_holds_them() -> None:
    model = method("sara").attach(vit_mini(num_classes=3), density=0.1)
    optimizer = build_optimizer(model, model.get_base_model(), OptimSpec(weight_decay=0.3))  # type: ignore[arg-type]
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert decay[id(parameter)] == (0.0 if name.endswith("head.modules_to_save.default.bias") else 0.3), name
