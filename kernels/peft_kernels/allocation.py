"""A shrinking budget that is shared out again while training: schedule, running importance, shares.

SNELLA (Shen et al., 2025, arXiv 2510.24037), after AdaLoRA (Zhang et al., ICLR 2023): a parameter X matters as much as
its smoothed |X ∂X| times the smoothed uncertainty of that, and a layer as much as the mean over its parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from peft_kernels.budget import share_out
from peft_kernels.config import require

METRICS = ("sensitivity", "magnitude")


@dataclass(frozen=True)
class BudgetSchedule:
    """How many of N entries may stay at each round, and when they are shared out again.

    Rounds count from 0. Until ``initial_warmup`` the budget is ``(1 − initial) N`` and nothing is shared out; beyond
    ``total − final_warmup`` it is ``(1 − target) N``; in between it falls with the power ``power`` of what is left.

    Args:
        initial: share of entries left out at the start, in [0, 1).
        target: share left out at the end, in [0, 1].
        total: number of rounds T.
        initial_warmup: w0.
        final_warmup: w1.
        interval: between the warm-ups, shares change in rounds that it divides.
        power: exponent of the fall.

    Raises:
        ValueError: a field out of range, or warm-ups that leave no round between them.
    """

    initial: float
    target: float
    total: int
    initial_warmup: int = 0
    final_warmup: int = 0
    interval: int = 1
    power: float = 3.0

    def __post_init__(self) -> None:
        require(0 <= self.initial < 1, self, "initial", "in [0, 1)")
        require(0 <= self.target <= 1, self, "target", "in [0, 1]")
        require(self.initial_warmup >= 0, self, "initial_warmup", "at least 0")
        require(self.final_warmup >= 0, self, "final_warmup", "at least 0")
        require(self.interval >= 1, self, "interval", "at least 1")
        require(self.power > 0, self, "power", "above 0")
        warmups = self.initial_warmup + self.final_warmup
        require(self.total > warmups, self, "total", f"more than both warm-ups together ({warmups})")

    def at(self, turn: int, entries: int) -> tuple[float, bool]:
        """The budget of round ``turn``, and whether it is shared out then."""
        first, last = (1 - self.initial) * entries, (1 - self.target) * entries
        if turn <= self.initial_warmup:
            return first, False
        if turn > self.total - self.final_warmup:
            return last, True
        between = self.total - self.final_warmup - self.initial_warmup
        left = 1 - (turn - self.initial_warmup) / between
        return int(last + (first - last) * left**self.power), turn % self.interval == 0


class Importance:
    """Running importance E and uncertainty U of some tensors: two tensors for each, in float32 at least.

    I = |X ∂X|,   E ← β1 E + (1 − β1) I,   U ← β2 U + (1 − β2) |I − E|   with the new E; both start at 0.

    Args:
        like: the tensors, by name.
        beta1: β1, in (0, 1).
        beta2: β2, in (0, 1).
        metric: ``sensitivity``, as above, or ``magnitude``: I = |X|.
    """

    def __init__(self, like: Mapping[str, Tensor], beta1: float, beta2: float, metric: str) -> None:
        self.beta1, self.beta2, self.metric = beta1, beta2, metric
        self.E, self.U = (
            {n: torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) for n, x in like.items()}
            for _ in range(2)
        )

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor]) -> bool:
        """Take in the tensors and their gradients; where one of these is not finite, nothing, and give False.

        A tensor without a gradient did not matter: I = 0.
        """
        E, U = list(self.E.values()), list(self.U.values())
        values = [tensors[name].detach().to(e.dtype) for name, e in self.E.items()]
        if self.metric == "magnitude":
            now = torch._foreach_abs(values)
        else:
            found = [tensors[name].grad for name in self.E]
            slopes = [torch.zeros_like(e) if g is None else g.to(e.dtype) for g, e in zip(found, E, strict=True)]
            largest = torch.stack(torch._foreach_norm(slopes, torch.inf))  # one look at the device for all
            if not bool(largest.isfinite().all()):
                return False
            now = torch._foreach_mul(values, slopes)
            torch._foreach_abs_(now)
        torch._foreach_lerp_(E, now, 1 - self.beta1)
        torch._foreach_sub_(now, E)
        torch._foreach_abs_(now)
        torch._foreach_lerp_(U, now, 1 - self.beta2)
        return True

    def scores(self, groups: Mapping[str, Sequence[str]]) -> dict[str, float]:
        """Σ mean(E U) over the tensors of each group; over all processes where there are several.

        Shards are added up with their sizes, so that it holds for copies (DDP) as for parts (FSDP) of the tensors; then
        the first process's numbers count.
        """
        names = [name for group in groups.values() for name in group]
        products = torch._foreach_mul([self.E[name] for name in names], [self.U[name] for name in names])
        sums = torch.stack([product.sum(dtype=torch.float64) for product in products])
        sizes = torch.tensor([self.E[name].numel() for name in names], dtype=torch.float64, device=sums.device)
        together = torch.stack([sums, sizes])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(together)
            dist.broadcast(together, 0)
        means = iter((together[0] / together[1].clamp_min(1)).tolist())
        return {group: sum(next(means) for _ in members) for group, members in groups.items()}


def share_with_least(
    budget: int, scores: Mapping[str, float], capacity: Mapping[str, int], least: Mapping[str, int]
) -> dict[str, int]:
    """`share_out`, but nobody gets less than ``least``: whoever would is given that, and the others share the rest.

    A budget that does not pay for all of ``least`` is shared alike.
    """
    if budget < sum(least.values()):
        return share_out(budget, dict.fromkeys(scores, 0.0), least)
    fixed: dict[str, int] = {}
    while True:
        free = {name: score for name, score in scores.items() if name not in fixed}
        shares = share_out(budget - sum(fixed.values()), free, capacity)
        low = {name: least[name] for name, share in shares.items() if share < least[name]}
        if not low:
            return {name: fixed.get(name, shares.get(name, 0)) for name in scores}
        fixed |= low


def share_in_float32(
    budget: float, scores: Float[Tensor, " layers"], capacity: Int[Tensor, " layers"]
) -> Int[Tensor, " layers"]:
    """The split of the authors' code, in its arithmetic: float32, and what truncation cuts off is lost."""
    score, limit = scores.float(), capacity.float()
    shares = torch.minimum(limit, (budget * score).trunc())
    for _ in range(10 * len(score)):
        left = budget - shares.sum()
        room = limit - shares
        among = torch.where(room > 0, score, 0.0)
        if not (left > 0 and among.sum() > 0):
            break
        shares = shares + torch.minimum(left * among / among.sum(), room)
    return shares.to(torch.int32)
