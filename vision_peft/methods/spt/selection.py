"""Where SPT's parameters go: the plan that scores and a budget give."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from torch import Tensor, nn

from peft_kernels.budget import Plan
from peft_kernels.config import nearest
from peft_kernels.hits import Allocation, Candidate, Hits, grid
from peft_kernels.sensitivity import Loss, sensitivity
from vision_peft.methods.spt.places import Place, always_count, check_rank, places

if TYPE_CHECKING:
    from vision_peft.methods.spt.config import SptConfig


def candidates(config: SptConfig, known: Mapping[str, Place]) -> dict[str, Candidate]:
    """How each place may be trained; a matrix with a side shorter than the rank has its entries only.

    Raises:
        ValueError: there are matrices, and the rank exceeds a side of every one.
    """
    matrices = [place for place in known.values() if place.is_matrix]
    if matrices and not any(place.carries(config.rank) for place in matrices):
        check_rank(config.rank, max(matrices, key=lambda place: min(place.shape[0], place.columns)))
    made = {}
    for name, place in known.items():
        if place.is_matrix and place.carries(config.rank):
            made[name] = Candidate(
                place.cost(config.structured, config.rank), config.matrix_ease, config.trains_entries
            )
        elif len(place.shape) == 1:
            single = config.trains_entries and place.module is not None
            made[name] = Candidate(place.size if config.tune_vectors else None, config.vector_ease, single)
        else:
            made[name] = Candidate(None, single=config.trains_entries)
    return made


def allocate(
    scores: Mapping[str, Tensor], how: Mapping[str, Candidate], config: SptConfig, always: int = 0
) -> Allocation:
    """The allocation for the config's budget.

    Raises:
        ValueError: the budget is below what is always trained or above the model; no score is above 0; nothing comes
            near the budget.
    """
    everything = sum(score.numel() for score in scores.values())
    budget = wanted(config, everything, always)
    if config.budget_rule == "at_most":
        limit = max(1, 2 * int(budget))
        hits = Hits(scores, how, limit, always)
        while hits.totals[-1] <= budget and not hits.exhausted:
            hits = Hits(scores, how, limit := 4 * limit, always)
        tau = hits.at_most(budget)
    elif config.grid is None:
        hits = Hits(scores, how, everything, always)
        tau = hits.nearest(budget)
    else:
        hits = Hits(scores, how, grid(config.grid)[-1], always)
        tau = hits.nearest(budget / config.grid, config.grid, grid(config.grid))
    if not tau:
        first = int(hits.totals[min(1, len(hits.totals) - 1)])
        raise ValueError(
            f"no number of hits comes near the budget of {budget:,.0f} (one hit gives {first:,} parameters): raise the "
            'budget, lower `grid`, or take budget_rule="at_most"'
        )
    chosen = hits.at(tau)
    if tau == len(hits.owner) and chosen.total < budget:
        warnings.warn(f"no more than {chosen.total:,} of {budget:,.0f} parameters can be trained here", stacklevel=3)
    return chosen


def wanted(config: SptConfig, everything: int, always: int) -> float:
    """The budget in parameters.

    Raises:
        ValueError: it is below what is always trained, or above what there is.
    """
    budget = config.budget * everything if config.budget < 1 else config.budget
    if budget < always:
        raise ValueError(f"the budget of {budget:,.0f} is below the {always:,} parameters that are always trained")
    if budget > everything + always:
        raise ValueError(f"the budget of {budget:,.0f} is above the {everything + always:,} parameters there are")
    return budget


def plan_of(chosen: Allocation, known: Mapping[str, Place], r: int) -> Plan:
    """The allocation as a plan."""
    return Plan(
        ranks={name: r for name in chosen.structured if known[name].is_matrix},
        entries={name: len(where) for name, where in chosen.entries.items()},
        full=[name for name in chosen.structured if not known[name].is_matrix],
    )


def parameters_of(plan: Plan, known: Mapping[str, Place], config: SptConfig, model: nn.Module) -> int:
    """Trainable parameters that a plan stands for, those always trained included, the head not."""
    modules = sum(known[name].cost(config.structured, r) for name, r in plan.ranks.items())
    vectors = sum(known[name].size for name in plan.full)
    return modules + vectors + sum(plan.entries.values()) + always_count(model, config)


def with_plan(config: SptConfig, model: nn.Module, scores: Mapping[str, Tensor]) -> SptConfig:
    """A copy of ``config`` that holds the plan for these scores of the model's parameters.

    Raises:
        ValueError: a candidate has no scores, or scores of another shape; or as of `allocate`.
    """
    model = _plain(model)
    known = known_places(model, config)
    own = {}
    for name, place in known.items():
        score = scores.get(place.parameter)
        if score is None:
            raise ValueError(f"there are no scores for {place.parameter!r}{nearest(place.parameter, scores)}")
        shape = tuple(model.get_parameter(place.parameter).shape)
        if tuple(score.shape) != shape:
            raise ValueError(
                f"the scores of {place.parameter!r} must have its shape {shape}; found {tuple(score.shape)}"
            )
        own[name] = score[place.start : place.start + place.shape[0]]
    chosen = allocate(own, candidates(config, known), config, always_count(model, config))
    planned = copy.copy(config)
    planned.plan = plan_of(chosen, known, config.rank).as_dict()
    planned.positions = chosen.entries
    return planned


def known_places(model: nn.Module, config: SptConfig) -> dict[str, Place]:
    """`places`, of which there must be some."""
    known = places(model, config)
    if not known:
        raise ValueError(
            f"SPT finds nothing to train in {type(model).__name__}: `target_modules` must name modules that hold "
            "tensors themselves, and neither the classifier nor tokens, position or patch embedding (see `exclude`)"
        )
    return known


def score(config: SptConfig, model: nn.Module, batches: Iterable[Any], loss: Loss | None = None) -> dict[str, Tensor]:
    """The sensitivities of the parameters that ``config`` may train, as its fields say."""
    model = _plain(model)
    known = known_places(model, config)
    candidates(config, known)  # what the scores would be refused for is refused before they are made
    wanted(config, sum(place.size for place in known.values()), always_count(model, config))
    names = dict.fromkeys(place.parameter for place in known.values())
    return sensitivity(
        model,
        batches,
        loss,
        config.num_batches,
        parameters=names,
        per_sample=config.per_sample,
        scoring_mode=config.scoring_mode,
        seed=config.scoring_seed,
    )


def choose(config: SptConfig, model: nn.Module, batches: Iterable[Any], loss: Loss | None = None) -> SptConfig:
    """Score the model on ``batches`` and put the plan for the config's budget into a copy of it."""
    return with_plan(config, model, score(config, model, batches, loss))


def _plain(model: nn.Module) -> nn.Module:
    return model.get_base_model() if isinstance(model, PeftModel) else model
