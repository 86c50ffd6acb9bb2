"""A budget that shrinks while training: its schedule, the running importance, and shares that add up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from peft_kernels.allocation import BudgetSchedule, Importance, share_in_float32, share_with_least

VIT_B = 84_934_656  # adapted entries


def test_budgets_of_vit_b_are_the_authors_to_the_entry() -> None:
    schedule = BudgetSchedule(0.01, 0.8, 100)
    budgets = [schedule.at(turn, VIT_B)[0] for turn in (0, 1, 50, 99)]
    assert budgets == [pytest.approx(84_085_309.44, abs=1e-6), 82_092_420, 25_374_228, 16_986_998]


def test_warm_ups_hold_both_ends() -> None:
    schedule = BudgetSchedule(0.0, 0.5, 10, initial_warmup=2, final_warmup=3, interval=2)
    found = [schedule.at(turn, 1000) for turn in range(10)]
    assert [budget for budget, _ in found[:3]] == [1000, 1000, 1000]
    assert [budget for budget, _ in found[8:]] == [500, 500]
    assert found[3][0] == int(500 + 500 * (1 - 1 / 5) ** 3)
    assert [due for _, due in found] == [False, False, False, False, True, False, True, False, True, True]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"total": 5, "initial_warmup": 2, "final_warmup": 3}, "total"),
        ({"initial": 1.0}, "initial"),
        ({"target": 1.1}, "target"),
        ({"interval": 0}, "interval"),
        ({"power": 0.0}, "power"),
        ({"initial_warmup": -1}, "initial_warmup"),
    ],
)
def test_schedules_that_cannot_be_are_refused(fields: dict, name: str) -> None:
    with pytest.raises(ValueError, match=f"BudgetSchedule.{name} must be"):
        BudgetSchedule(**{"initial": 0.0, "target": 0.5, "total": 9, **fields})


def one_step(grad: float) -> tuple[Importance, nn.Parameter, bool]:
    parameter = nn.Parameter(torch.ones(3))
    importance = Importance({"X": parameter}, 0.5, 0.5, "sensitivity")
    parameter.grad = torch.full((3,), grad)
    return importance, parameter, importance.update({"X": parameter})


def test_uncertainty_is_of_the_new_importance() -> None:
    importance, _, taken = one_step(-1.0)
    assert taken
    assert importance.E["X"].tolist() == [0.5] * 3
    assert importance.U["X"].tolist() == [0.25] * 3


@pytest.mark.parametrize("bad", [float("inf"), float("nan"), float("-inf")])
def test_a_step_with_a_gradient_that_is_not_finite_is_left_out(bad: float) -> None:
    importance, parameter, _ = one_step(1.0)
    parameter.grad = torch.tensor([1.0, bad, 1.0])
    assert not importance.update({"X": parameter})
    assert importance.E["X"].tolist() == [0.5] * 3
    assert importance.U["X"].tolist() == [0.25] * 3


def test_a_parameter_without_a_gradient_did_not_matter() -> None:
    importance, parameter, _ = one_step(1.0)
    parameter.grad = None
    assert importance.update({"X": parameter})
    assert importance.E["X"].tolist() == [0.25] * 3
    assert importance.U["X"].tolist() == [0.25] * 3


def test_magnitude_needs_no_gradient() -> None:
    parameter = nn.Parameter(torch.tensor([-2.0]))
    importance = Importance({"X": parameter}, 0.5, 0.5, "magnitude")
    assert importance.update({"X": parameter})
    assert importance.E["X"].tolist() == [1.0]


def test_half_precision_is_smoothed_in_float32() -> None:
    parameter = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    importance = Importance({"X": parameter}, 0.85, 0.85, "sensitivity")
    assert importance.E["X"].dtype == importance.U["X"].dtype == torch.float32


NAMES = ("a", "b", "c")


def shares(budget: int, scores: tuple, capacity: tuple, least: tuple = (0, 0, 0)) -> tuple[int, ...]:
    given: list[dict[str, Any]] = [dict(zip(NAMES, values, strict=True)) for values in (scores, capacity, least)]
    return tuple(share_with_least(budget, *given).values())


def test_what_a_full_layer_cannot_take_goes_to_the_others() -> None:
    assert shares(120, (0.9, 0.05, 0.05), (50, 50, 50)) == (50, 35, 35)


def test_equal_scores_get_equal_counts_whatever_the_size() -> None:
    assert shares(60, (1.0, 1.0, 1.0), (100, 400, 400)) == (20, 20, 20)


def test_scores_of_zero_share_alike() -> None:
    assert shares(60, (0.0, 0.0, 0.0), (100, 400, 400)) == (20, 20, 20)
    assert shares(130, (1.0, 0.0, 0.0), (100, 400, 400)) == (100, 15, 15)


def test_everybody_keeps_the_least() -> None:
    assert shares(100, (0.98, 0.01, 0.01), (100, 100, 100), (10, 10, 10)) == (80, 10, 10)
    assert shares(12, (0.98, 0.01, 0.01), (100, 100, 100), (10, 10, 10)) == (4, 4, 4)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    st.integers(0, 400),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 100), st.integers(0, 20)), min_size=1, max_size=6),
)
def test_shares_add_up_within_their_bounds(budget: int, layers: list[tuple[float, int, int]]) -> None:
    scores = {str(i): layer[0] for i, layer in enumerate(layers)}
    capacity = {str(i): layer[1] for i, layer in enumerate(layers)}
    least = {str(i): min(layer[2], layer[1]) for i, layer in enumerate(layers)}
    found = share_with_least(budget, scores, capacity, least)
    assert sum(found.values()) == min(budget, sum(capacity.values()))
    assert all(0 <= found[name] <= capacity[name] for name in scores)
    if budget >= sum(least.values()):
        assert all(found[name] >= least[name] for name in scores)


def test_the_authors_arithmetic_ends_where_nobody_has_room() -> None:
    found = share_in_float32(100, torch.tensor([0.5, 0.5]), torch.tensor([10, 20]))
    assert found.tolist() == [10, 20]
    assert share_in_float32(10, torch.zeros(2), torch.tensor([10, 20])).tolist() == [0, 0]
