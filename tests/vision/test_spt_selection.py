"""SPT's selection on models: candidates, published counts and totals, budgets."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from peft import get_peft_model
from torch import Tensor, nn

import vision_peft as vp
from peft_kernels.budget import Plan
from peft_kernels.hits import Hits
from tests.kernels.saved_adapters import small_model
from tests.vision.spt_models import TOKEN, config, scores_of
from vision_peft.methods.spt.places import Place, always_count, places
from vision_peft.methods.spt.selection import candidates, parameters_of


@pytest.fixture(scope="module")
def vit_b() -> nn.Module:
    with torch.device("meta"):
        return timm.create_model("vit_base_patch16_224")


def matrices(known: dict[str, Place]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {op: [] for op in ("q", "k", "v", "proj", "fc1", "fc2")}
    for name, place in known.items():
        if place.is_matrix:
            found[name.split(".")[-2]].append(name)
    return found


def test_candidates_of_vit_b(vit_b: nn.Module) -> None:
    known = places(vit_b, vp.SptConfig())
    assert sum(place.size for place in known.values()) == 85_056_000
    assert always_count(vit_b, vp.SptConfig()) == 768
    assert {op: len(names) for op, names in matrices(known).items()} == dict.fromkeys(matrices(known), 12)


@pytest.mark.parametrize(
    ("structured", "costs"), [("lora", (12_288, 30_720, 30_720)), ("adapter", (13_064, 52_232, 13_064))]
)
def test_costs_on_vit_b(vit_b: nn.Module, structured: str, costs: tuple[int, ...]) -> None:
    known = places(vit_b, vp.SptConfig())
    how = candidates(vp.SptConfig(structured=structured), known)
    for op, cost in {"q": costs[0], "v": costs[0], "proj": costs[0], "fc1": costs[1], "fc2": costs[2]}.items():
        assert how[matrices(known)[op][0]].cost == cost
    if structured == "lora":
        assert (how[matrices(known)["q"][0]].needed, how[matrices(known)["fc1"][0]].needed) == (1229, 3072)


@pytest.mark.parametrize(
    ("structured", "counts", "vectors", "entries", "modules", "total"),
    [
        ("lora", (0, 0, 4, 3, 4, 3), (68, 1), 23_789, 356_352, 380_909),
        ("lora", (0, 0, 2, 2, 2, 1), (54, 0), 21_067, 182_784, 204_619),
        ("lora", (2, 2, 12, 10, 12, 8), (83, 0), 10_368, 997_632, 1_008_768),
        ("adapter", (0, 0, 4, 3, 3, 7), (71, 1), 24_753, 397_192, 422_713),
        ("adapter", (0, 1, 12, 7, 6, 11), (77, 0), 27_702, 777_512, 805_982),
    ],
)
def test_released_plans_have_their_totals(
    vit_b: nn.Module, structured: str, counts: Any, vectors: Any, entries: int, modules: int, total: int
) -> None:
    asked = vp.SptConfig(structured=structured)
    known = places(vit_b, asked)
    ranks = {name: 8 for (_, names), n in zip(matrices(known).items(), counts, strict=True) for name in names[:n]}
    narrow = [name for name, place in known.items() if place.shape == (768,)]
    wide = [name for name, place in known.items() if place.shape == (3072,)]
    plan = Plan(ranks, full=narrow[: vectors[0]] + wide[: vectors[1]])
    assert parameters_of(plan, known, asked, vit_b) - 768 == modules
    rest = [name for name, place in known.items() if place.is_matrix and name not in ranks]
    plan.entries = {name: entries // len(rest) for name in rest}
    plan.entries[rest[0]] += entries - sum(plan.entries.values())
    assert parameters_of(plan, known, asked, vit_b) == total


@pytest.mark.parametrize("structured", ["lora", "adapter"])
@pytest.mark.parametrize("budget", [500, 3_000, 12_000])
def test_as_many_parameters_are_trained_as_the_plan_says(structured: str, budget: int) -> None:
    model = small_model(**TOKEN)
    made = config(model, structured=structured, budget=budget, modules_to_save=[], rank=4)
    plan = Plan.read(made.plan or {})
    wanted = parameters_of(plan, places(model, made), made, model)
    adapted = get_peft_model(model, made)  # type: ignore[arg-type]
    count = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert count == wanted <= budget
    assert count >= 0.7 * budget


def test_fused_and_separate_projections_are_planned_alike() -> None:
    class Separate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(12, 12) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.q(x), self.k(x), self.v(x)], -1)

    class Fused(nn.Module):
        def __init__(self, other: Separate) -> None:
            super().__init__()
            self.qkv = nn.Linear(12, 36)
            self.qkv.weight.data = torch.cat([m.weight.data for m in (other.q, other.k, other.v)])
            self.qkv.bias.data = torch.cat([m.bias.data for m in (other.q, other.k, other.v)])

        def forward(self, x: Tensor) -> Tensor:
            return self.qkv(x)

    torch.manual_seed(0)
    separate = Separate()
    fused, x = Fused(separate), torch.randn(5, 12)
    fields = {"budget": 150, "budget_rule": "at_most", "rank": 2, "modules_to_save": []}
    made = {
        model: vp.spt_config(model, [x], lambda model, batch: model(batch).pow(4).sum(), **fields)
        for model in (separate, fused)
    }
    assert Plan.read(made[fused].plan or {}).as_dict() == {
        part: {f"qkv.{name}": value for name, value in named.items()}
        if isinstance(named, dict)
        else [f"qkv.{n}" for n in named]
        for part, named in (made[separate].plan or {}).items()
    }
    assert {f"qkv.{name}" for name in made[separate].positions} == set(made[fused].positions)
    for name, where in made[separate].positions.items():
        assert torch.equal(where, made[fused].positions[f"qkv.{name}"])


def test_at_most_is_never_exceeded_and_closest_is_the_nearest_on_the_grid() -> None:
    model = small_model()
    scores = scores_of(model)
    known = places(model, vp.SptConfig())
    own = {n: scores[p.parameter][p.start : p.start + p.shape[0]] for n, p in known.items()}
    for budget in (300, 4_000, 50_000):
        made = vp.SptConfig.from_scores(model, scores, budget=budget, grid=20_000)
        totals = Hits(own, candidates(made, known), 31_600).totals
        tried = [int(totals[-(-(2 * k * 20_000) // 100)]) for k in range(1, 80)]
        total = parameters_of(Plan.read(made.plan or {}), known, made, model)
        assert abs(total - budget) == min(abs(t - budget) for t in tried)
        within = vp.SptConfig.from_scores(model, scores, budget=budget, budget_rule="at_most")
        assert parameters_of(Plan.read(within.plan or {}), known, within, model) <= budget


def test_a_share_of_the_backbone_is_a_budget() -> None:
    model = small_model()
    size = sum(place.size for place in places(model, vp.SptConfig()).values())
    shared, counted = (config(model, budget=budget).plan for budget in (0.05, 0.05 * size))
    assert shared == counted


def test_structured_only_leaves_single_entries_out() -> None:
    plan = Plan.read(config(small_model(), structured_only=True, rank=2).plan or {})
    assert plan.ranks
    assert plan.full
    assert not plan.entries
    assert not Plan.read(config(small_model(), tune_vectors=False).plan or {}).full
