"""SaRA while it trains: gradients, frozen entries, the second selection, resuming, DDP."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.checkpoint import checkpoint

import diffusion_peft as dp
from peft_kernels.entries import Entries

from .sara_models import adapted, batch, in_force, loss_of, mixed, move, trained

OPTIMISERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, 1.0),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-2, momentum=0.5),
}


def steps(
    model: nn.Module, allocator: dp.SaraAllocator, optimiser: torch.optim.Optimizer, turns: range
) -> list[dict[str, Any]]:
    """Training steps with clipping; what was decided in them."""
    decided = []
    for step in turns:
        loss_of(model, seed=step).backward()
        clip_grad_norm_(trained(model).values(), 1.0)
        optimiser.step()
        decided += [found] if (found := allocator.update_and_allocate(step)) else []
        optimiser.zero_grad()
    return decided


def entries_of(model: nn.Module) -> dict[str, Entries]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Entries)}


# --- gradients -----------------------------------------------------------------------------------------------------
def test_gradients_of_every_kind_of_tensor_are_the_finite_differences() -> None:
    model = adapted(torch.float64, threshold=0.02)
    move(model)
    loss_of(model).backward()
    for name, values in trained(model).items():
        assert values.grad is not None
        for i in range(0, len(values), max(1, len(values) // 5)):
            slopes = []
            for push in (1e-6, -1e-6):
                with torch.no_grad():
                    values[i] += push
                    slopes.append(loss_of(model).item())
                    values[i] -= push
            slope = (slopes[0] - slopes[1]) / 2e-6
            assert values.grad[i].item() == pytest.approx(slope, abs=1e-9), name


def test_gradients_are_those_of_the_dense_weights_at_the_entries() -> None:
    model, plain = adapted(torch.float64), mixed(torch.float64).requires_grad_(True)
    for owner in (model, plain):
        loss_of(owner).backward()
    dense = {name.replace(".", "_"): p.grad for name, p in plain.named_parameters()}
    for name, part in entries_of(model).items():
        module, _, leaf = name.removeprefix("base_model.model.").partition(".sara_adapter.default.entries.")
        expected = dense[f"{module}_{leaf}"].flatten()[part.places().long()]  # type: ignore[union-attr]
        torch.testing.assert_close(part.values.grad, expected, rtol=0, atol=1e-12)


def test_four_parts_of_a_batch_are_the_batch() -> None:
    whole, parts = adapted(torch.float64), adapted(torch.float64)
    tokens, target = batch(size=8)
    (whole(tokens) - target).square().mean().backward()
    for x, y in zip(tokens.chunk(4), target.chunk(4), strict=True):
        ((parts(x) - y).square().mean() / 4).backward()
    for one, other in zip(trained(whole).values(), trained(parts).values(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-14)


def test_checkpointing_gives_the_same_gradients() -> None:
    plain, again = adapted(), adapted()
    loss_of(plain).backward()
    tokens, target = batch()
    y: Any = checkpoint(again, tokens, use_reentrant=False)
    (y - target).square().mean().backward()
    for one, other in zip(trained(plain).values(), trained(again).values(), strict=True):
        assert torch.equal(one.grad, other.grad)  # type: ignore[arg-type]


# --- what must not move --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", OPTIMISERS)
def test_other_entries_keep_every_bit_and_the_chosen_ones_are_trained(name: str) -> None:
    model, before = adapted(rank_weight=0.01), dict(mixed().named_parameters())
    optimiser = OPTIMISERS[name](trained(model).values())
    allocator = dp.SaraAllocator(model, 20, optimiser)
    after_selection: dict[str, Tensor] = {}
    found_last: dict[str, int] = {}
    for step in range(20):
        found = steps(model, allocator, optimiser, range(step, step + 1))
        if found:
            assert step == 9
            after_selection = {n: part.values.detach().clone() for n, part in entries_of(model).items()}
            found_last = found[0]
            assert 0 < found_last["trained"] < found_last["entries"]
    moved = 0
    for tensor_name, tensor in in_force(model).items():
        base = before[tensor_name.removeprefix("base_model.model.")]
        small = base.abs() < 0.03
        assert torch.equal(tensor[~small], base[~small])
        moved += int((tensor[small] != base[small]).sum())
    assert moved > 0.9 * sum(p.numel() for p in trained(model).values())
    again = 0
    for n, part in entries_of(model).items():
        kept = after_selection[n]
        left = kept.abs() >= 0.03
        assert torch.equal(left, torch.zeros_like(left) if part.frozen is None else part.frozen)
        assert torch.equal(part.values[left], kept[left])
        again += int((part.values != kept).sum())
    assert 0.9 * found_last["trained"] < again <= found_last["trained"]


def test_steps_smaller_than_bfloat16_tells_apart_add_up() -> None:
    """A step of 1e-6 is lost in bfloat16 beside any value above 1e-3; of the values, float32, a hundred are 1e-4."""
    model = adapted(torch.bfloat16)
    before = {name: p.detach().clone() for name, p in trained(model).items()}
    optimiser = torch.optim.SGD(trained(model).values(), 1e-6)
    for _ in range(100):
        for values in trained(model).values():
            values.grad = torch.ones_like(values)
        optimiser.step()
    for name, values in trained(model).items():
        large = before[name].abs() > 1e-3
        once = before[name].bfloat16() - torch.tensor(1e-6).bfloat16()
        assert torch.equal(once[large], before[name].bfloat16()[large])
        torch.testing.assert_close(values, before[name] - 1e-4, rtol=0, atol=2e-7)
        assert not torch.equal(values.bfloat16(), before[name].bfloat16())  # what the model computes with has moved


def test_frozen_entries_count_nothing_in_clipping() -> None:
    model = adapted()
    for part in entries_of(model).values():
        part.frozen = torch.ones(len(part.values), dtype=torch.bool)
    loss_of(model).backward()
    assert all(not p.grad.any() for p in trained(model).values())  # type: ignore[union-attr]


# --- the second selection ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fields", "steps", "match"),
    [
        ({"reselect_step": 10}, 10, "reselect_step must be less than the run's 10 steps; found 10"),
        ({}, None, "give `steps`"),
        ({}, -4, "an integer >= 1; found -4"),
    ],
)
def test_schedules_that_do_not_suit_raise(fields: dict[str, Any], steps: int | None, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        dp.SaraAllocator(adapted(**fields), steps)


def test_other_adapters_raise() -> None:
    with pytest.raises(ValueError, match="'two' is no SaRA adapter of this PeftModel"):
        dp.SaraAllocator(adapted(), 10, adapter_name="two")
    with pytest.raises(ValueError, match="needs the optimiser"):
        dp.SaraAllocator(adapted(keep_moments=False), 10).reselect()


@pytest.mark.parametrize("fields", [{"density": 0.2}, {"density": 0.2, "scope": "per_tensor"}], ids=str)
def test_second_selection_is_by_the_threshold_that_the_first_one_found(fields: dict[str, Any]) -> None:
    model = adapted(**fields)
    allocator = dp.SaraAllocator(model, 10)
    assert allocator.reselect()["trained"] == sum(p.numel() for p in trained(model).values())
    tops = {name: part.values.abs().max().item() for name, part in allocator.entries.items()}
    move(model)
    found = allocator.reselect()
    bound = max(tops.values())
    for name, part in allocator.entries.items():
        kept = part.values.abs() <= (tops[name] if "scope" in fields else bound)
        assert torch.equal(kept, ~part.frozen if part.frozen is not None else torch.ones_like(kept))
    assert 0 < found["trained"] < found["entries"]


def test_it_can_be_left_out() -> None:
    model = adapted(reselect_step=0)
    optimiser = OPTIMISERS["adamw"](trained(model).values())
    assert not steps(model, dp.SaraAllocator(model, 5, optimiser), optimiser, range(5))
    assert all(part.frozen is None for part in entries_of(model).values())


@pytest.mark.parametrize("keep_moments", [True, False])
@pytest.mark.parametrize("stop", [3, 5, 6])
def test_resumed_at_any_step_it_ends_with_the_same_bits(stop: int, keep_moments: bool) -> None:
    def begun() -> tuple[nn.Module, dp.SaraAllocator, torch.optim.Optimizer]:
        model = adapted(rank_weight=0.1, rank_every=2, keep_moments=keep_moments)
        optimiser = OPTIMISERS["adamw"](trained(model).values())
        return model, dp.SaraAllocator(model, 10, optimiser), optimiser

    whole = begun()
    assert len(steps(whole[0], whole[1], whole[2], range(10))) == 1
    first = begun()
    steps(*first, range(stop))
    state = [copy.deepcopy(part.state_dict()) for part in first]
    second = begun()
    second[1].load_state_dict(state[1])
    second[0].load_state_dict(state[0])
    second[2].load_state_dict(state[2])
    steps(*second, range(stop, 10))
    expected = in_force(whole[0])
    assert all(torch.equal(tensor, expected[name]) for name, tensor in in_force(second[0]).items())


def test_state_of_another_run_is_refused() -> None:
    allocator = dp.SaraAllocator(adapted(), 10)
    with pytest.raises(ValueError, match="selects again after step 5, expected 4"):
        dp.SaraAllocator(adapted(), 8).load_state_dict(allocator.state_dict())
    with pytest.raises(ValueError, match=r"other entries than this model's, first those of 'up.weight'"):
        allocator.load_state_dict({**allocator.state_dict(), "frozen.up.weight": torch.ones(3, dtype=torch.bool)})


# --- several processes ---------------------------------------------------------------------------------------------
DISTRIBUTED = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
import diffusion_peft as dp
from tests.diffusion.sara_models import adapted, in_force, loss_of, trained

dist.init_process_group("gloo")
model = adapted(rank_weight=0.1)
optimiser = torch.optim.AdamW(trained(model).values(), 1e-2)
allocator = dp.SaraAllocator(model, 6, optimiser)
wrapped = DistributedDataParallel(model)
for step in range(6):
    loss_of(wrapped, seed=10 * step + dist.get_rank()).backward()
    optimiser.step()
    allocator.update_and_allocate(step)
    optimiser.zero_grad()
torch.save({"tensors": in_force(model), "frozen": allocator.state_dict()}, f"{sys.argv[1]}/{dist.get_rank()}.pt")
dist.destroy_process_group()
"""


def test_two_processes_end_with_the_same_weights(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(DISTRIBUTED)
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(root / "kernels"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    command += ["--standalone", str(script), str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    start = in_force(adapted())
    assert one["frozen"].keys() == other["frozen"].keys()
    assert any(key.startswith("frozen.") for key in one["frozen"])
    for name, tensor in one["tensors"].items():
        assert torch.equal(tensor, other["tensors"][name])
        assert not torch.equal(tensor, start[name])
