"""Budgets: what gets the trainable parameters, decided once and kept as plain data.

A method scores tensors on data, an allocator here turns scores into counts, and a `Plan` holds the decision. The plan
lands in the method's configuration, so that a saved adapter loads without the data it was decided on; indices of single
entries are tensors and live in the adapter's buffers, the plan holds how many there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from peft_kernels.config import nearest


@dataclass
class Plan:
    """Where the trainable parameters go; names are those of modules or tensors, as the method defines them.

    Args:
        ranks: rank of each module that gets a low-rank change.
        sparsity: share of entries, in [0, 1], that each module leaves out.
        entries: number of single entries trained in each tensor.
        full: tensors trained whole.
        layers: layers chosen as they are.

    Raises:
        ValueError: a value out of range, or a tensor that is trained whole or by rank and by entries too.
    """

    ranks: dict[str, int] = field(default_factory=dict)
    sparsity: dict[str, float] = field(default_factory=dict)
    entries: dict[str, int] = field(default_factory=dict)
    full: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for part, kind in (("ranks", dict), ("sparsity", dict), ("entries", dict), ("full", list), ("layers", list)):
            value = getattr(self, part)
            names = list(value) if isinstance(value, kind) else [None]
            if not all(isinstance(name, str) for name in names):
                raise ValueError(f"plan.{part} must be a {kind.__name__} of names; found {value!r}")
            if len(set(names)) < len(names):
                raise ValueError(f"plan.{part} must name everything once; found {value!r}")
        for part in ("ranks", "entries"):
            for name, count in getattr(self, part).items():
                if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                    raise ValueError(f"plan.{part}[{name!r}] must be an integer >= 1; found {count!r}")
        for name, share in self.sparsity.items():
            if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 <= share <= 1:
                raise ValueError(f"plan.sparsity[{name!r}] must be a number in [0, 1]; found {share!r}")
        kinds = {"ranks": set(self.ranks), "entries": set(self.entries), "full": set(self.full)}
        for one, other in (("ranks", "entries"), ("ranks", "full"), ("entries", "full")):
            for name in sorted(kinds[one] & kinds[other]):
                raise ValueError(f"plan.{one} and plan.{other} both name {name!r}; a tensor is trained in one way")

    @classmethod
    def read(cls, data: Plan | Mapping[str, Any]) -> Plan:
        """The plan that a configuration's dictionary stands for.

        Raises:
            ValueError: an unknown part, with the nearest right name, or a wrong value.
        """
        if isinstance(data, Plan):
            return data
        known = [part.name for part in fields(cls)]
        for name in data:
            if name not in known:
                raise ValueError(f"a plan has the parts {', '.join(known)}; found {name!r}{nearest(name, known)}")
        return cls(**data)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; empty parts are left out."""
        return {name: value for name, value in asdict(self).items() if value}

    def check(self, sizes: Mapping[str, int]) -> None:
        """Compare the plan with a model.

        Args:
            sizes: every name the plan may use, with its number of entries.

        Raises:
            ValueError: an unknown name, with the nearest right one, or more entries than the tensor has.
        """
        for part in fields(self):
            for name in getattr(self, part.name):
                if name not in sizes:
                    raise ValueError(f"plan.{part.name} names {name!r}, which is not there{nearest(name, sizes)}")
        for name, count in self.entries.items():
            if count > sizes[name]:
                raise ValueError(f"plan.entries[{name!r}] must be at most {sizes[name]}, its size; found {count}")


def ranking(
    scores: Mapping[str, Float[Tensor, "..."]], limit: int
) -> tuple[Int[Tensor, " limit"], Int[Tensor, " limit"]]:
    """The ``limit`` highest scores of all tensors together, from the highest: number of the tensor, place in it.

    Equal scores are ordered by tensor, then by place in row-major order. A score of 0 is never among them: it is a dead
    entry, or a gradient that is 0 by symmetry; so there may be fewer than ``limit``.

    Raises:
        ValueError: a score that is NaN, infinite or negative, with its tensor; ``limit`` below 1; no score above 0.
    """
    if limit < 1:
        raise ValueError(f"at least 1 entry must be asked for; found {limit}")
    for name, score in scores.items():
        if score.numel() and not (torch.isfinite(score).all() and score.min() >= 0):
            raise ValueError(f"scores must be finite and not negative; those of {name!r} are not")
    flat = torch.cat([score.detach().flatten() for score in scores.values()])
    positive = int(torch.count_nonzero(flat))
    if not positive:
        raise ValueError(f"all scores are 0: none of the {len(flat)} entries matters to the loss")
    lowest = torch.topk(flat, min(limit, positive), sorted=False).values.min()
    places = (flat >= lowest).nonzero().squeeze(1)
    order = torch.sort(flat[places], descending=True, stable=True).indices[:limit]
    places = places[order]
    ends = torch.tensor([score.numel() for score in scores.values()], device=flat.device).cumsum(0)
    owner = torch.searchsorted(ends, places, right=True)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    return owner, places - starts[owner]


def top_k(scores: Mapping[str, Float[Tensor, "..."]], budget: int) -> dict[str, Int[Tensor, " count"]]:
    """The places, ascending, of the ``budget`` highest scores in each tensor that has any; ordered as in `ranking`."""
    owner, place = ranking(scores, budget)
    return {
        name: place[owner == number].sort().values
        for number, name in enumerate(scores)
        if bool((owner == number).any())
    }


def above_threshold(counts: Mapping[str, int], costs: Mapping[str, int], ease: float) -> list[str]:
    """The tensors with enough hits to earn a structured change: ``count >= cost / ease``, in the order of ``costs``.

    Args:
        counts: hits of each tensor; one without any may be missing.
        costs: parameters of the structured change of each tensor.
        ease: how many times earlier than at its own cost a change is introduced (SPT's α).
    """
    return [name for name, cost in costs.items() if counts.get(name, 0) > 0 and counts[name] >= cost / ease]


def share_out(budget: int, scores: Mapping[str, float], capacity: Mapping[str, int]) -> dict[str, int]:
    """Divide ``budget`` in proportion to the scores, nobody above its capacity; what is cut off goes to the others.

    The whole numbers add up to the budget, or to all capacity if that is less: remainders go to the largest fractions,
    of equal ones to the first. Where only scores of 0 have room, room is shared alike.

    Raises:
        ValueError: a negative or non-finite score, or a negative budget.
    """
    for name, score in scores.items():
        if not (math.isfinite(score) and score >= 0):
            raise ValueError(f"scores must be finite and not negative; that of {name!r} is {score}")
    if budget < 0:
        raise ValueError(f"a budget must not be negative; found {budget}")
    budget = min(budget, sum(capacity[name] for name in scores))
    exact = dict.fromkeys(scores, Fraction(0))  # in exact arithmetic, so that the parts cannot add up to more
    room = [name for name in scores if capacity[name] > 0]
    while room:
        left = budget - sum(exact[name] for name in scores if name not in room)
        total = sum(Fraction(scores[name]) for name in room)
        exact |= {name: left * Fraction(scores[name]) / total if total else Fraction(left, len(room)) for name in room}
        full = [name for name in room if exact[name] >= capacity[name]]
        exact |= {name: Fraction(capacity[name]) for name in full}
        if not full:
            break
        room = [name for name in room if name not in full]
    shares = {name: math.floor(value) for name, value in exact.items()}
    by_fraction = sorted(scores, key=lambda name: shares[name] - exact[name])
    for name in by_fraction[: budget - sum(shares.values())]:
        shares[name] += 1
    return shares


def proportional_ranks(
    budget: int, scores: Mapping[str, float], costs: Mapping[str, int], lowest: int = 1, highest: int = 64
) -> dict[str, int]:
    """Ranks whose parameters are shared out in proportion to the scores and never exceed the budget.

    Args:
        budget: trainable parameters in all.
        scores: importance of each module.
        costs: parameters that one rank costs in each module.
        lowest: rank that every module gets at least.
        highest: rank that no module exceeds.

    Raises:
        ValueError: the budget does not pay for the lowest ranks.
    """
    least = lowest * sum(costs[name] for name in scores)
    if budget < least:
        raise ValueError(f"rank {lowest} everywhere costs {least} parameters; the budget is {budget}")
    shares = share_out(budget - least, scores, {name: (highest - lowest) * costs[name] for name in scores})
    ranks = {name: lowest + share // costs[name] for name, share in shares.items()}
    left = budget - sum(rank * costs[name] for name, rank in ranks.items())
    for name in sorted(scores, key=lambda name: -(shares[name] % costs[name]) / costs[name]):
        if costs[name] <= left and ranks[name] < highest:
            ranks[name] += 1
            left -= costs[name]
    return ranks


def match_budget(count: Callable[[int], int], budget: int, lo: int, hi: int) -> int:
    """The setting in ``lo..hi`` whose parameter count is nearest to ``budget``; of two equally near, the smaller.

    Args:
        count: trainable parameters at a setting such as a rank; never falls as the setting grows.
    """
    if lo > hi:
        raise ValueError(f"the lowest setting must not exceed the highest; found {lo} and {hi}")
    first, beyond = lo, hi + 1  # the first setting that costs more than the budget lies in first..beyond
    while first < beyond:
        middle = (first + beyond) // 2
        first, beyond = (first, middle) if count(middle) > budget else (middle + 1, beyond)
    near = [setting for setting in (first - 1, first) if lo <= setting <= hi]
    return min(near, key=lambda setting: abs(count(setting) - budget))
