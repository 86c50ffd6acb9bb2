"""timm's own training parts on an adapted model: optimiser, schedule, averaged weights, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver, ModelEmaV3

from peft_kernels.registry import methods
from tests.kernels.saved_adapters import GENERAL, pictures, small_model, trained


def train(model: torch.nn.Module, ema: ModelEmaV3 | None = None, steps: int = 2) -> torch.optim.Optimizer:
    """Some steps of timm's loop; every trainable parameter must have moved."""
    optimiser = create_optimizer_v2(model, opt="adamw", lr=1e-2, weight_decay=0.05)
    scheduler: Any = create_scheduler_v2(optimiser, sched="cosine", num_epochs=steps, warmup_epochs=1, warmup_lr=1e-3)[
        0
    ]
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for step in range(steps):
        loss = torch.nn.functional.cross_entropy(model.train()(pictures()), torch.tensor([1, 2]))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        scheduler.step(step + 1)
        if ema is not None:
            ema.update(model, step=10 + step)  # its first updates only copy
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n, p in model.named_parameters() if p.requires_grad}
    return optimiser


@pytest.mark.parametrize("name", GENERAL)
def test_averaged_weights_evaluate_as_the_average(name: str) -> None:
    """The averaged copy gives what a fresh model gives whose adapter holds the averages."""
    model = trained(name)
    ema = ModelEmaV3(model, decay=0.5)
    train(model, ema)
    averages = {n: p.detach().clone() for n, p in ema.module.named_parameters()}
    fresh = trained(name, seed=9).eval()
    with torch.no_grad():
        for key, parameter in fresh.named_parameters():
            parameter.copy_(averages[key])
        found = ema.module.eval()(pictures())
        torch.testing.assert_close(found, fresh(pictures()))
        assert not torch.allclose(found, model.eval()(pictures()), atol=1e-4)


@pytest.mark.parametrize("name", GENERAL)
def test_checkpoint_of_timm_goes_into_a_new_model(name: str, tmp_path: Path) -> None:
    model = trained(name)
    ema = ModelEmaV3(model, decay=0.5)
    optimiser = train(model, ema)
    saver = CheckpointSaver(model, optimiser, model_ema=ema, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path))
    saver.save_checkpoint(0, metric=0.5)
    for averaged, expected in ((False, model), (True, ema.module)):
        again = trained(name, seed=9)
        timm.models.load_checkpoint(again, str(tmp_path / "last.pth.tar"), use_ema=averaged)
        with torch.no_grad():
            torch.testing.assert_close(again.eval()(pictures()), expected.eval()(pictures()))
    restored = create_optimizer_v2(again, opt="adamw", lr=1e-2, weight_decay=0.05)
    timm.models.resume_checkpoint(again, str(tmp_path / "last.pth.tar"), restored, log_info=False)
    for one, two in zip(restored.state.values(), optimiser.state.values(), strict=True):
        assert torch.equal(one["exp_avg"], two["exp_avg"])


def test_optimiser_of_timm_decays_matrices_alone() -> None:
    model = peft.get_peft_model(small_model(), methods()["ssf"].config())
    decayed, plain = {}, {}
    for group in create_optimizer_v2(model, opt="adamw", lr=1e-2, weight_decay=0.05).param_groups:
        (decayed if group["weight_decay"] else plain).update({id(p): p for p in group["params"]})
    assert {p.ndim for p in decayed.values()} == {2}
    assert {p.ndim for p in plain.values()} == {1}
