"""From scores to structure: thresholds, ties, the two searches, held against brute force."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_kernels.hits import Candidate, Hits, grid


def scored(*sizes: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"t{number}": torch.rand(size, generator=generator) for number, size in enumerate(sizes)}


def by_hand(scores: dict, candidates: dict, tau: int, always: int) -> tuple[list[str], dict[str, list[int]], int]:
    """The allocation of the ``tau`` highest scores as the text has it."""
    ranked = sorted((-float(v), t, i) for t, (name, s) in enumerate(scores.items()) for i, v in enumerate(s) if v > 0)
    structured, entries, total = [], {}, always
    for number, name in enumerate(scores):
        hits = sorted(i for _, t, i in ranked[:tau] if t == number)
        c = candidates[name]
        if hits and c.cost is not None and len(hits) >= c.cost / c.ease:
            structured.append(name)
            total += c.cost
        elif hits and c.single:
            entries[name] = hits
            total += len(hits)
    return structured, entries, total


CANDIDATE = st.builds(
    Candidate, cost=st.none() | st.integers(1, 30), ease=st.sampled_from([1.0, 3.0, 5.0, 10.0]), single=st.booleans()
)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.lists(st.integers(0, 6), min_size=1, max_size=9), CANDIDATE), min_size=1, max_size=5),
    st.integers(0, 7),
)
def test_every_number_of_hits_buys_what_the_text_says(tensors: list, always: int) -> None:
    scores = {str(number): torch.tensor(values).float() for number, (values, _) in enumerate(tensors)}
    candidates = {str(number): candidate for number, (_, candidate) in enumerate(tensors)}
    if not any(score.any() for score in scores.values()):
        return
    hits = Hits(scores, candidates, 100, always)
    assert hits.exhausted
    for tau in range(len(hits.totals)):
        structured, entries, total = by_hand(scores, candidates, tau, always)
        chosen = hits.at(tau)
        assert chosen.structured == structured
        assert {name: where.tolist() for name, where in chosen.entries.items()} == entries
        assert chosen.total == int(hits.totals[tau]) == total
    assert (hits.totals.diff() >= 0).all()


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.integers(1, 150))
def test_searches_find_the_best_of_all(seed: int, budget: int) -> None:
    scores = scored(12, 40, 7, 30, seed=seed)
    candidates = {"t0": Candidate(12, 5.0), "t1": Candidate(33, 10.0), "t2": Candidate(7, 5.0), "t3": Candidate()}
    hits = Hits(scores, candidates, 89, always=3)
    totals = [by_hand(scores, candidates, tau, 3)[2] for tau in range(90)]
    least = min(abs(total - budget) for total in totals)
    found = hits.nearest(budget)
    if least > budget:
        assert found is None
    else:
        assert found == max(tau for tau, total in enumerate(totals) if abs(total - budget) == least)
    within = hits.at_most(budget)
    if budget < 3:
        assert within is None
    else:
        assert within is not None
        assert totals[within] <= budget
        assert within == 89 or totals[within + 1] > budget


def test_matrix_exactly_at_its_threshold_gets_its_module() -> None:
    scores = {"q": torch.zeros(2000), "norm": torch.zeros(100)}
    scores["q"][:1229], scores["norm"][:20] = 1.0, 1.0
    candidates = {"q": Candidate(12_288, 10.0), "norm": Candidate(100, 5.0)}
    assert Hits(scores, candidates, 2000).at(1249).structured == ["q", "norm"]  # 1,228.8 and 20 hits are needed
    scores["q"][0], scores["norm"][0] = 0.0, 0.0
    chosen = Hits(scores, candidates, 2000).at(1249)
    assert chosen.structured == []
    assert {name: len(where) for name, where in chosen.entries.items()} == {"q": 1228, "norm": 19}


def test_grid_is_the_authors() -> None:
    taus = grid(10**6)
    assert taus == [math.ceil(k * 0.02 * 10**6) for k in range(1, 80)]
    assert taus[0] == 20_000
    assert taus[-1] == 1_580_000
    assert [k for k, tau in enumerate(taus, 1) if tau % 20_000] == [35, 41, 57, 70]


def test_tied_scores_are_hit_in_order() -> None:
    hits = Hits({"a": torch.ones(3), "b": torch.ones(2)}, {"a": Candidate(), "b": Candidate()}, 9)
    assert {name: where.tolist() for name, where in hits.at(4).entries.items()} == {"a": [0, 1, 2], "b": [0]}


def test_of_equally_near_totals_the_later_is_taken() -> None:
    hits = Hits({"a": torch.tensor([3.0, 2.0, 1.0])}, {"a": Candidate(cost=3, ease=1.5)}, 3)
    assert hits.totals.tolist() == [0, 1, 3, 3]
    assert hits.nearest(2.0) == 3
    assert hits.nearest(2.0, taus=[1]) == 1
    assert hits.nearest(0.4) == 0


def test_scores_that_are_all_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="all scores are 0: none of the 3 entries matters"):
        Hits({"a": torch.zeros(3)}, {"a": Candidate()}, 3)
