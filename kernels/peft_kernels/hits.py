"""From scores of single entries to structure: which tensors get a module, which single entries, which nothing.

He, Cai, Zhang, Tao, Zhuang: "Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning" (SPT), ICCV 2023, Section 3.2.
The τ highest scores of all tensors together are hits. A tensor with ``c ≥ cost / ease`` hits gets its structured change
(a low-rank module on a matrix, all of a vector) at its cost; in any other exactly the hits are trained, one by one:

    P(τ) = C_always + Σ_structured cost + Σ_others c

P never falls as τ grows but jumps where a tensor crosses its threshold, so a budget is met only nearly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from peft_kernels.budget import ranking

GRID_STEP, GRID_POINTS = 0.02, 79


@dataclass(frozen=True)
class Candidate:
    """How one tensor may be trained.

    Attributes:
        cost: parameters of its structured change; ``None`` if it has none.
        ease: how many times earlier than at its own cost the change is introduced (SPT's α and β).
        single: whether its hits are trained one by one where it is not changed as a whole.
    """

    cost: int | None = None
    ease: float = 1.0
    single: bool = True

    @property
    def needed(self) -> int | None:
        """The least number of hits that earns the structured change."""
        return None if self.cost is None else max(1, math.ceil(self.cost / self.ease))


@dataclass(frozen=True)
class Allocation:
    """What a number of hits buys.

    Attributes:
        structured: tensors that get their structured change, in order.
        entries: ascending flat places of the entries trained one by one, by tensor.
        total: parameters in all, those always trained included.
    """

    structured: list[str]
    entries: dict[str, Int[Tensor, " count"]]
    total: int


class Hits:
    """The highest scores in order, and what each number of them would cost.

    Args:
        scores: of every tensor, finite and not negative; an entry of score 0 is never hit.
        candidates: how each tensor may be trained, by the same names.
        limit: the largest number of hits looked at.
        always: parameters that are trained anyhow.

    Attributes:
        totals: ``P(τ)`` for τ = 0, 1, ... up to the limit, or to the number of scores above 0.

    Raises:
        ValueError: as of `budget.ranking`.
    """

    def __init__(
        self,
        scores: Mapping[str, Float[Tensor, "..."]],
        candidates: Mapping[str, Candidate],
        limit: int,
        always: int = 0,
    ) -> None:
        self.candidates, self.limit = dict(candidates), limit
        self.names = list(scores)
        self.owner, self.place = (part.cpu() for part in ranking(scores, limit))
        self.totals = always + torch.cat([torch.zeros(1, dtype=torch.long), self._steps().cumsum(0)])

    @property
    def exhausted(self) -> bool:
        """Whether there are no further scores above 0."""
        return len(self.owner) < self.limit

    def _steps(self) -> Int[Tensor, " hits"]:
        """What each hit adds to the total: by its number within its own tensor."""
        order = torch.argsort(self.owner, stable=True)
        counts = torch.bincount(self.owner, minlength=len(self.names))
        starts = counts.cumsum(0) - counts
        number = torch.empty_like(order)
        number[order] = torch.arange(1, len(order) + 1) - starts[self.owner[order]]
        own = [self.candidates[name] for name in self.names]
        never = torch.iinfo(torch.long).max
        needed = torch.tensor([never if c.needed is None else c.needed for c in own])
        single = torch.tensor([int(c.single) for c in own])
        jump = torch.tensor([(c.cost or 0) - c.single * ((c.needed or 1) - 1) for c in own])
        crossing, before = number == needed[self.owner], number < needed[self.owner]
        return jump[self.owner] * crossing + single[self.owner] * before

    def at(self, tau: int) -> Allocation:
        """What the ``tau`` highest scores buy."""
        owner, place = self.owner[:tau], self.place[:tau]
        counts = torch.bincount(owner, minlength=len(self.names)).tolist()
        structured, entries = [], {}
        for number, (name, count) in enumerate(zip(self.names, counts, strict=True)):
            candidate = self.candidates[name]
            if candidate.needed is not None and count >= candidate.needed:
                structured.append(name)
            elif count and candidate.single:
                entries[name] = place[owner == number].sort().values
        return Allocation(structured, entries, int(self.totals[len(owner)]))

    def nearest(self, budget: float, unit: float = 1.0, taus: Iterable[int] | None = None) -> int | None:
        """The τ whose total is nearest to ``budget``, of equally near ones the last; the authors' search.

        Args:
            budget: wanted, in ``unit`` parameters.
            unit: what the budget is counted in.
            taus: the numbers of hits that are tried; every one if not given.

        Returns:
            τ, or ``None`` where no total is nearer to the budget than nothing at all.
        """
        last = len(self.owner)
        tried = torch.arange(last + 1) if taus is None else torch.tensor([min(tau, last) for tau in taus])
        distance = (self.totals[tried].double() / unit - budget).abs()
        least = distance.min()
        if least > abs(budget):
            return None
        return int(tried[(distance == least).nonzero().max()])

    def at_most(self, budget: float) -> int | None:
        """The largest τ whose total does not exceed ``budget``; ``None`` if what is always trained exceeds it."""
        within = int(torch.searchsorted(self.totals, int(budget), right=True))
        return within - 1 if within else None


def grid(unit: int) -> list[int]:
    """The authors' numbers of hits: ``⌈0.02 k unit⌉`` for k = 1..79, the product in floating point."""
    return [math.ceil(k * GRID_STEP * unit) for k in range(1, GRID_POINTS + 1)]
