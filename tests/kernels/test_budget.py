"""Plans are checked plain data; allocators keep to their budget exactly and decide ties the same way every time."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_kernels.budget import (
    Plan,
    above_threshold,
    match_budget,
    proportional_ranks,
    ranking,
    share_out,
    top_k,
)

SIZES = {"blocks.0.attn.q": 64, "blocks.0.attn.v": 64, "norm.weight": 8, "head.bias": 4}
PLAN = {
    "ranks": {"blocks.0.attn.v": 8},
    "sparsity": {"blocks.0.attn.v": 0.9},
    "entries": {"blocks.0.attn.q": 5},
    "full": ["norm.weight"],
    "layers": ["head.bias"],
}


def test_plan_survives_json() -> None:
    plan = Plan.read(PLAN)
    plan.check(SIZES)
    assert Plan.read(json.loads(json.dumps(plan.as_dict()))) == plan
    assert plan.as_dict() == PLAN


def test_empty_plan_is_empty_data() -> None:
    assert Plan().as_dict() == {}
    assert Plan.read({}) == Plan()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"rank": {}}, r"found 'rank' \(did you mean 'ranks'\?\)"),
        ({"ranks": {"a": 0}}, r"plan.ranks\['a'\] must be an integer >= 1; found 0"),
        ({"ranks": {"a": 2.0}}, r"must be an integer >= 1; found 2.0"),
        ({"entries": {"a": True}}, r"must be an integer >= 1; found True"),
        ({"ranks": ["a"]}, r"plan.ranks must be a dict of names"),
        ({"full": {"a": 1}}, r"plan.full must be a list of names"),
        ({"full": [1]}, r"plan.full must be a list of names"),
        ({"layers": ["a", "a"]}, r"plan.layers must name everything once"),
        ({"sparsity": {"a": 1.5}}, r"plan.sparsity\['a'\] must be a number in \[0, 1\]; found 1.5"),
        ({"sparsity": {"a": float("nan")}}, r"found nan"),
        ({"ranks": {"a": 1}, "entries": {"a": 1}}, r"plan.ranks and plan.entries both name 'a'"),
        ({"entries": {"a": 1}, "full": ["a"]}, r"plan.entries and plan.full both name 'a'"),
    ],
)
def test_wrong_plan_is_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan.read(data)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan(ranks={"blocks.0.attn.vv": 1}), r"plan.ranks names 'blocks.0.attn.vv'.*did you mean 'blocks.0.attn.v'"),
        (Plan(full=["norm.weights"]), r"did you mean 'norm.weight'"),
        (Plan(entries={"norm.weight": 9}), r"must be at most 8, its size; found 9"),
    ],
)
def test_plan_of_another_model_is_refused(plan: Plan, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan.check(SIZES)


def test_ties_go_to_the_first_tensor_and_the_lowest_place() -> None:
    scores = {"a": torch.tensor([[1.0, 3.0], [1.0, 0.0]]), "b": torch.tensor([1.0, 3.0])}
    owner, place = ranking(scores, 5)
    assert list(zip(owner.tolist(), place.tolist(), strict=True)) == [(0, 1), (1, 1), (0, 0), (0, 2), (1, 0)]
    assert {name: places.tolist() for name, places in top_k(scores, 3).items()} == {"a": [0, 1], "b": [1]}


def test_zero_scores_are_never_chosen() -> None:
    scores = {"a": torch.tensor([0.0, 2.0]), "b": torch.zeros(3)}
    assert {name: places.tolist() for name, places in top_k(scores, 4).items()} == {"a": [1]}


@pytest.mark.parametrize(
    ("scores", "budget", "message"),
    [
        ({"a": torch.zeros(3)}, 1, "all scores are 0: none of the 3 entries"),
        ({"a": torch.ones(3), "b": torch.tensor([1.0, float("nan")])}, 1, "those of 'b' are not"),
        ({"a": torch.tensor([-1.0])}, 1, "those of 'a' are not"),
        ({"a": torch.ones(3)}, 0, "at least 1 entry must be asked for; found 0"),
    ],
)
def test_unusable_scores_are_refused(scores: dict[str, Any], budget: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        top_k(scores, budget)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=8), min_size=1, max_size=4), st.integers(1, 40))
def test_top_k_is_the_sorted_prefix(values: list[list[int]], budget: int) -> None:
    scores = {str(number): torch.tensor(own, dtype=torch.float32) for number, own in enumerate(values)}
    everything = [
        (-score, number, place) for number, own in enumerate(values) for place, score in enumerate(own) if score
    ]
    if not everything:
        return
    chosen = sorted((number, place) for _, number, place in sorted(everything)[:budget])
    found = [(int(name), place) for name, places in top_k(scores, budget).items() for place in places.tolist()]
    assert found == chosen


def test_matrix_exactly_at_its_threshold_is_structured() -> None:
    costs = {"q": 12_288, "v": 12_288, "fc1": 30_720, "k": 12_288}
    assert above_threshold({"q": 1229, "v": 1228, "fc1": 3072}, costs, ease=10) == ["q", "fc1"]
    assert above_threshold({"q": 0}, {"q": 0}, ease=10) == []


@pytest.mark.parametrize(
    ("budget", "scores", "capacity", "expected"),
    [
        (120, [0.9, 0.05, 0.05], [50, 50, 50], [50, 35, 35]),
        (10, [1.0, 1.0], [100, 400], [5, 5]),
        (10, [0.0, 0.0, 0.0], [9, 9, 9], [4, 3, 3]),
        (10, [1.0, 0.0, 0.0], [4, 9, 9], [4, 3, 3]),
        (99, [1.0, 2.0], [3, 4], [3, 4]),
        (0, [1.0, 2.0], [3, 4], [0, 0]),
        (7, [1.0, 1.0, 1.0], [5, 0, 5], [4, 0, 3]),
    ],
)
def test_budget_is_shared_out_by_score(
    budget: int, scores: list[float], capacity: list[int], expected: list[int]
) -> None:
    shares = share_out(budget, dict(zip("abc", scores, strict=False)), dict(zip("abc", capacity, strict=False)))
    assert shares == dict(zip("abc", expected, strict=False))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 10**8)), min_size=1, max_size=12), st.integers(0, 10**9))
def test_shares_add_up_to_the_budget(layers: list[tuple[float, int]], budget: int) -> None:
    scores = {str(number): score for number, (score, _) in enumerate(layers)}
    capacity = {str(number): size for number, (_, size) in enumerate(layers)}
    shares = share_out(budget, scores, capacity)
    assert sum(shares.values()) == min(budget, sum(capacity.values()))
    assert all(0 <= shares[name] <= capacity[name] for name in shares)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_unusable_layer_score_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="that of 'b' is"):
        share_out(10, {"a": 1.0, "b": bad}, {"a": 5, "b": 5})


def test_ranks_follow_scores_within_the_budget() -> None:
    costs = {"q": 100, "v": 100, "fc1": 300}
    ranks = proportional_ranks(2_000, {"q": 0.0, "v": 1.0, "fc1": 1.0}, costs, highest=16)
    assert ranks == {"q": 2, "v": 9, "fc1": 3}  # 2,000 parameters


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 900)), min_size=1, max_size=8), st.integers(0, 10**5))
def test_ranks_never_exceed_the_budget(layers: list[tuple[float, int]], spare: int) -> None:
    scores = {str(number): score for number, (score, _) in enumerate(layers)}
    costs = {str(number): cost for number, (_, cost) in enumerate(layers)}
    budget = spare + sum(costs.values())
    ranks = proportional_ranks(budget, scores, costs, highest=8)
    assert all(1 <= rank <= 8 for rank in ranks.values())
    assert sum(rank * costs[name] for name, rank in ranks.items()) <= budget


def test_budget_below_the_lowest_ranks_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 2 everywhere costs 80 parameters; the budget is 79"):
        proportional_ranks(79, {"a": 1.0, "b": 1.0}, {"a": 10, "b": 30}, lowest=2)


@pytest.mark.parametrize(
    ("budget", "expected"), [(0, 1), (100, 1), (149, 1), (150, 1), (151, 2), (800, 8), (10_000, 12)]
)
def test_nearest_setting_to_a_budget(budget: int, expected: int) -> None:
    assert match_budget(lambda r: 100 * r, budget, 1, 12) == expected


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=20), st.integers(0, 600))
def test_matched_setting_is_the_best_of_all(steps: list[int], budget: int) -> None:
    counts = [sum(steps[: number + 1]) for number in range(len(steps))]
    found = match_budget(lambda setting: counts[setting], budget, 0, len(counts) - 1)
    assert abs(counts[found] - budget) == min(abs(count - budget) for count in counts)


def test_settings_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match="found 3 and 2"):
        match_budget(lambda r: r, 1, 3, 2)
