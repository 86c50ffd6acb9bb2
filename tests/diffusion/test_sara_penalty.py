"""SaRA's penalty on the rank: its gradient, its draw, and the calls that bring it in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.nn.utils import clip_grad_norm_

import diffusion_peft as dp
from peft_kernels.ops.nuclear import reference

from .sara_models import adapted, in_force, loss_of, move, trained


def test_penalty_lowers_the_nuclear_norm_and_is_added_after_clipping() -> None:
    model = adapted(rank_weight=0.5, reselect_step=0)
    values = list(trained(model).values())
    optimiser = torch.optim.SGD(values, 1e-3)
    allocator = dp.SaraAllocator(model, optimizer=optimiser)
    assert sorted(allocator.matrices) == ["down.weight", "up.weight"]  # the table has a side of 9

    def norms() -> dict[str, float]:
        return {
            name: reference(part.values.detach(), part.places(), tuple(allocator.tensors[name].shape))[1].sum().item()  # type: ignore[arg-type]
            for name, part in allocator.entries.items()
            if name in allocator.matrices
        }

    before = norms()
    for step in range(6):
        (0 * loss_of(model)).backward()
        clip_grad_norm_(values, 1e-6)
        optimiser.step()
        allocator.update_and_allocate(step)
        optimiser.zero_grad()
    after = norms()
    assert all(after[name] < before[name] for name in before)


def test_penalty_is_the_weighted_subgradient_of_one_matrix() -> None:
    model = adapted(rank_weight=0.25, reselect_step=0)
    allocator = dp.SaraAllocator(model)
    (name,) = allocator.draw()
    before = {n: part.values.detach().clone() for n, part in allocator.entries.items()}
    allocator.before_step()
    for n, part in allocator.entries.items():
        if n != name:
            assert part.values.grad is None
            continue
        expected = reference(before[n], part.places(), tuple(allocator.tensors[n].shape))[0]  # type: ignore[arg-type]
        torch.testing.assert_close(part.values.grad, 0.25 * expected, rtol=0, atol=1e-5)


def test_matrices_are_drawn_in_turn_by_seed_and_step() -> None:
    def drawn(seed: int) -> list[str]:
        allocator = dp.SaraAllocator(adapted(rank_seed=seed, reselect_step=0))
        names = []
        for allocator.turn in range(40):
            names += allocator.draw()
        return names

    assert drawn(0) == drawn(0) != drawn(1)
    assert 10 < drawn(0).count("up.weight") < 30


def test_subgradients_are_held_between_draws_and_two_matrices_can_be_drawn() -> None:
    model = adapted(rank_weight=1.0, rank_every=3, rank_num=2, reselect_step=0)
    allocator = dp.SaraAllocator(model)
    held = []
    for turn in range(6):
        allocator.before_step()
        assert sorted(allocator.held) == ["down.weight", "up.weight"]
        held.append(allocator.held["up.weight"])
        move(model, seed=turn, by=0.01)
    assert [held[i] is held[0] for i in range(6)] == [True, True, True, False, False, False]


def test_a_forgotten_call_is_noticed() -> None:
    model = adapted()
    allocator = dp.SaraAllocator(model, steps=4)
    with pytest.raises(RuntimeError, match="call its `before_step"):
        allocator.update_and_allocate(0)
    allocator.before_step()
    assert allocator.update_and_allocate(0) is None


def test_calls_by_hand_are_the_optimisers_hooks() -> None:
    ends = []
    for by_hand in (False, True):
        model = adapted(rank_weight=0.1)
        optimiser = torch.optim.AdamW(trained(model).values(), 1e-2, weight_decay=0.1)
        allocator = dp.SaraAllocator(model, 6, None if by_hand else optimiser)
        for step in range(6):
            loss_of(model, seed=step).backward()
            if by_hand:
                allocator.before_step()
            optimiser.step()
            allocator.update_and_allocate(step)
            optimiser.zero_grad()
        ends.append(in_force(model))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("unscaled", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_of_gradients_leaves_the_penalty_whole(fused: bool, unscaled: bool) -> None:
    """A fused optimiser divides the gradients in its own step, after its hooks."""
    ends = []
    for scale in (1.0, 1024.0):
        model = adapted(rank_weight=0.5, reselect_step=0)
        optimiser = torch.optim.SGD(trained(model).values(), 1e-2, fused=fused)
        scaler, allocator = torch.amp.GradScaler("cpu", init_scale=scale), dp.SaraAllocator(model, optimizer=optimiser)
        for step in range(3):
            scaler.scale(loss_of(model, seed=step)).backward()
            if unscaled:
                scaler.unscale_(optimiser)
            scaler.step(optimiser)
            scaler.update()
            allocator.update_and_allocate(step)
            optimiser.zero_grad()
        ends.append(in_force(model))
    for name, expected in ends[0].items():
        torch.testing.assert_close(ends[1][name], expected, rtol=0, atol=1e-6)


def test_accelerates_optimiser_is_taken_and_none_of_torchs_kind_refused() -> None:
    ends = []
    for prepared in (False, True):
        model = adapted(rank_weight=0.1)
        optimiser: Any = torch.optim.AdamW(trained(model).values(), 1e-2)
        if prepared:
            optimiser = Accelerator(cpu=True).prepare(optimiser)
        allocator = dp.SaraAllocator(model, 4, optimiser)
        for step in range(4):
            loss_of(model, seed=step).backward()
            optimiser.step()
            allocator.update_and_allocate(step)
            optimiser.zero_grad()
        ends.append(in_force(model))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    with pytest.raises(TypeError, match=r"optimiser of torch's kind; found list: leave it out, and call `before_step"):
        dp.SaraAllocator(adapted(), 4, list(trained(adapted()).values()))
    with pytest.raises(ValueError, match=r"none of the adapter's parameters: make it after"):
        dp.SaraAllocator(adapted(), 4, torch.optim.SGD(trained(adapted()).values(), 1e-2))
