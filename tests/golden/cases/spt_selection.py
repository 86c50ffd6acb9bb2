"""SPT: scores, and the selection that budgets make of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peft_kernels.hits import Allocation, Candidate, Hits, grid
from peft_kernels.sensitivity import sensitivity
from vision_peft.methods.spt import SptConfig
from vision_peft.methods.spt.adapter import Bottleneck, LowRank

from ..comparison import Tolerance
from ..harness import Results
from ..vectors import Vectors


def exact(name: str, dtype: torch.dtype) -> Tolerance:
    """Bitwise."""
    return Tolerance(0.0)


class Holder(nn.Module):
    """Parameters whose gradient of `pull` at batch b is the b-th given one; q, k and v as one tensor if ``fused``."""

    def __init__(self, gradients: Mapping[str, Tensor], fused: bool) -> None:
        super().__init__()
        self.parts: dict[str, list[str]] = {}
        for name in gradients:
            owner = name.replace(".attn.q.", ".attn.qkv.").replace(".attn.k.", ".attn.qkv.")
            owner = owner.replace(".attn.v.", ".attn.qkv.") if fused else name
            self.parts.setdefault(owner if fused else name, []).append(name)
        self.gradients = {
            owner: torch.cat([gradients[name] for name in names], 1) for owner, names in self.parts.items()
        }
        self.tensors = nn.ParameterList(torch.zeros_like(gradient[0]) for gradient in self.gradients.values())

    def scores(self, batches: int) -> dict[str, Tensor]:
        """The sensitivities by the names given."""
        found = sensitivity(self, range(batches), lambda _, b: self.pull(b), None)
        scores = {}
        for score, names, gradient in zip(found.values(), self.parts.values(), self.gradients.values(), strict=True):
            assert score.shape == gradient.shape[1:]
            scores |= dict(zip(names, score.chunk(len(names)), strict=True))
        return scores

    def pull(self, batch: int) -> Tensor:
        """The loss of a batch."""
        pairs = zip(self.tensors, self.gradients.values(), strict=True)
        return torch.stack([(tensor * gradient[batch]).sum() for tensor, gradient in pairs]).sum()


def candidates(case: Vectors, scores: Mapping[str, Tensor]) -> dict[str, Candidate]:
    """How the case lets each tensor be trained."""
    options, made = case.options, {}
    for name, score in scores.items():
        single = not options["structured_only"]
        if score.ndim == 2:
            config = SptConfig(structured=options["structured_type"], rank=options["rank"])
            made[name] = Candidate(matrix_cost(score, config), options["alpha"], single)
        else:
            made[name] = Candidate(len(score) if options["structured_vector"] else None, options["beta"], single)
    return made


def matrix_cost(score: Tensor, config: SptConfig) -> int:
    """Parameters of a module on a matrix of this shape, counted in one."""
    rows, columns = score.shape
    if config.structured == "lora":
        module: nn.Module = LowRank((rows, columns), 0, config.rank, True)
    else:
        module = Bottleneck(rows, 0, config.rank, True, reads_input=False, dropout=0.0)
    return sum(p.numel() for p in module.parameters())


def select(case: Vectors) -> Results:
    """Sensitivities, and the single entries for every budget; sets and counts are asserted."""
    options = case.options
    gradients = {name: case[f"input.grad.{name}"] for name in options["order"]}
    results: dict[str, dict[str, Tensor]] = {}
    for way in ("separate", "fused"):
        scores = Holder(gradients, way == "fused").scores(options["num_batches"])
        scores = {name: scores[name] for name in options["order"]}
        found = {f"output.sensitivity.{name}": score for name, score in scores.items()}
        how = candidates(case, scores)
        taus = grid(options["unit"])
        hits = Hits(scores, how, taus[-1], options["always_tuned"])
        for budget, expected in options["budgets"].items():
            tau = hits.nearest(float(budget), options["unit"], taus)
            if tau is None:
                raise ValueError(f"budget {budget}: nothing comes near it, the file expects {expected}")
            chosen = hits.at(tau)
            compare_sets(budget, chosen, scores, how, expected, options["always_tuned"])
            found[f"output.mask.{budget}"] = mask(chosen, scores)
        results[way] = found
    return results


def compare_sets(
    budget: str,
    chosen: Allocation,
    scores: Mapping[str, Tensor],
    how: Mapping[str, Candidate],
    expected: Mapping[str, Any],
    always: int,
) -> None:
    """Hold sets and counts against the file's.

    Raises:
        ValueError: one of them differs.
    """
    structured = {name: how[name].cost or 0 for name in chosen.structured}
    entries = sum(len(where) for where in chosen.entries.values())
    found = {
        "structured_matrices": [name for name in structured if scores[name].ndim == 2],
        "fully_tuned_vectors": [name for name in structured if scores[name].ndim == 1],
        "unstructured_entries": entries,
        "structured_parameters": sum(structured.values()),
        "total_with_always_tuned": chosen.total,
    }
    if chosen.total != found["structured_parameters"] + entries + always:
        raise ValueError(f"budget {budget}: the total {chosen.total} is not the sum of its parts {found}")
    for what, value in expected.items():
        if what in found and found[what] != value:
            raise ValueError(f"budget {budget}: {what} is {found[what]}, expected {value}")


def mask(chosen: Allocation, scores: Mapping[str, Tensor]) -> Tensor:
    """1 at single entries, over all tensors one after the other."""
    parts = []
    for name, score in scores.items():
        part = torch.zeros(score.numel(), dtype=torch.uint8)
        part[chosen.entries.get(name, torch.empty(0, dtype=torch.long))] = 1
        parts.append(part)
    return torch.cat(parts)
