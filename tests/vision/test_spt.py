"""SPT: published parameter counts, what is trained and what never moves, plans that fit and plans that do not."""

from __future__ import annotations

import warnings
from typing import Any

import peft
import pytest
import timm
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

import vision_peft as vp
from peft_kernels.budget import Plan
from peft_kernels.hits import Candidate, Hits
from tests.kernels.saved_adapters import WEIGHTS, edit, pictures, small_model, structure
from vision_peft.methods.spt.adapter import SptAdapter, SptLayer
from vision_peft.methods.spt.places import Place, always_count, places
from vision_peft.methods.spt.selection import candidates, parameters_of

TOKEN = {"class_token": True, "global_pool": "token"}


def scores_of(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(p.shape, generator=generator) ** 4 for name, p in model.named_parameters()}


def config(model: nn.Module, seed: int = 0, **fields: Any) -> vp.SptConfig:
    asked = {"budget": 20_000, "budget_rule": "at_most", "module_dropout": 0.0, "module_drop_path": 0.0, **fields}
    return vp.SptConfig.from_scores(model, scores_of(model, seed), **asked)


def trained(adapted: Any, steps: int = 2) -> Any:
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], 1e-2, weight_decay=0.1)
    for _ in range(steps):
        adapted(pictures()).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return adapted.eval()


# --- counts --------------------------------------------------------------------------------------------------------
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


# --- selection on a model --------------------------------------------------------------------------------------------
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


# --- what moves -----------------------------------------------------------------------------------------------------
def test_only_chosen_entries_move() -> None:
    model = small_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    made = config(model, structured_only=False, rank=64, budget=5_000)  # a rank that no matrix has the hits for
    plan = Plan.read(made.plan or {})
    assert plan.entries
    assert not plan.ranks
    known = places(model, made)
    adapted = trained(get_peft_model(model, made), steps=10)  # type: ignore[arg-type]
    assert all(p.grad is None for n, p in adapted.named_parameters() if "base_layer" in n)
    merged = adapted.merge_and_unload()
    moved: dict[str, Tensor] = {
        name: (p != before[name]).flatten() for name, p in merged.named_parameters() if name in before
    }
    allowed = {name: torch.zeros(p.numel(), dtype=torch.bool) for name, p in before.items()}
    for name, place in known.items():
        where = made.positions.get(name, torch.arange(place.size) if name in plan.full else None)
        if where is not None:
            allowed[place.parameter][where + place.start * place.columns] = True
    for name, changed in moved.items():
        if not name.startswith("head"):
            assert not (changed & ~allowed[name]).any(), name
    assert sum(int(changed.sum()) for changed in moved.values()) > 0.9 * sum(plan.entries.values())


def test_start_is_the_base_model_bit_for_bit() -> None:
    for structured in ("lora", "adapter"):
        model = small_model(**TOKEN)
        before = model(pictures())
        assert torch.equal(get_peft_model(model, config(model, structured=structured)).eval()(pictures()), before)  # type: ignore[arg-type]


def test_branches_are_dropped_while_training_only() -> None:
    model = small_model()
    adapted = trained(get_peft_model(model, config(model, module_dropout=0.3, module_drop_path=0.3, rank=4)))  # type: ignore[arg-type]
    assert torch.equal(adapted(pictures()), adapted(pictures()))
    adapted.train()
    assert not torch.equal(adapted(pictures()), adapted(pictures()))
    layers = {name: m for name, m in adapted.named_modules() if isinstance(m, SptLayer)}
    dropouts = {name: m.adapters["default"].dropout for name, m in layers.items() if name.endswith("attn.proj")}
    assert set(dropouts.values()) == {0.0}


@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 12), (2, 3, 4, 12), (0, 3, 12)])
@pytest.mark.parametrize("structured", ["lora", "adapter"])
def test_inputs_of_any_number_of_dimensions(shape: tuple[int, ...], structured: str) -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(12, 8))
    made = config(base, budget=0.5, rank=2, structured=structured, modules_to_save=[])
    adapted = get_peft_model(base, made).train()  # type: ignore[arg-type]
    x = torch.randn(shape, requires_grad=True)
    y = adapted(x)
    assert y.shape == (*shape[:-1], 8)
    y.sum().backward()
    assert x.grad is not None


# --- merging and files -----------------------------------------------------------------------------------------------
def test_two_adapters_with_other_plans_add_up_and_come_apart() -> None:
    model = small_model()
    plain = {name: p.detach().clone() for name, p in model.named_parameters()}
    adapted: Any = get_peft_model(model, config(model, 0, modules_to_save=[]), "one")  # type: ignore[arg-type]
    trained(adapted)
    adapted.add_adapter("two", config(small_model(), 1, modules_to_save=[]))
    adapted.set_adapter("two")
    trained(adapted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted.base_model.set_adapter(["one", "two"])
    both = adapted(pictures())
    adapted.merge_adapter()
    torch.testing.assert_close(adapted(pictures()), both, rtol=1e-5, atol=1e-5)
    adapted.unmerge_adapter()
    for name, p in adapted.get_base_model().named_parameters():
        name = name.replace(".base_layer", "")
        if name in plain:
            assert torch.equal(p, plain[name]), name


def test_bottlenecks_refuse_to_merge_and_nothing_is_merged() -> None:
    model = small_model()
    adapted: Any = trained(get_peft_model(model, config(model, structured="adapter")))  # type: ignore[arg-type]
    before = adapted(pictures())
    for merge in (adapted.merge_adapter, adapted.merge_and_unload):
        with pytest.raises(
            NotImplementedError, match=r"'default' cannot be merged: an activation .* structured=\"lora\""
        ):
            merge()
    assert torch.equal(adapted(pictures()), before)


@pytest.fixture
def folder(tmp_path: Any) -> Any:
    model = small_model()
    trained(get_peft_model(model, config(model))).save_pretrained(str(tmp_path), save_embedding_layers=False)  # type: ignore[arg-type]
    return tmp_path


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((7, 7), "holds the index 7 after 7; they must ascend"),
        ((9, 4), "the index 4 after 9"),
        ((0, 10**6), "expected 0 to"),
    ],
)
def test_damaged_places_are_refused(folder: Any, values: tuple[int, int], said: str) -> None:
    key = next(key for key, t in load_file(folder / WEIGHTS).items() if key.endswith("weight.index") and len(t) > 1)
    edit(folder, lambda tensors: tensors[key][:2].copy_(torch.tensor(values)))
    model = small_model()
    before = structure(model)
    with pytest.raises(vp.AdapterError, match=said) as refused:
        vp.load_adapter(model, folder)
    assert "adapter_model.safetensors" in str(refused.value)
    assert key in str(refused.value)
    assert structure(model) == before


def test_adapter_for_another_architecture_is_refused(folder: Any) -> None:
    model = small_model(embed_dim=64)
    before = structure(model)
    with pytest.raises(vp.AdapterError):
        vp.load_adapter(model, folder)
    assert structure(model) == before


def test_plan_without_places_does_not_run(folder: Any) -> None:
    made = peft.PeftConfig.from_pretrained(str(folder))
    made.inference_mode = False
    adapted = get_peft_model(small_model(), made)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="trained entries are not known: a plan holds only how many"):
        adapted(pictures())
    loaded = PeftModel.from_pretrained(small_model(), str(folder), is_trainable=True)
    loaded(pictures()).sum().backward()


# --- what cannot be planned or attached ------------------------------------------------------------------------------
def unplannable(**fields: Any) -> Any:
    return lambda model: config(model, **fields)


WRONG = {
    "no plan": (lambda model: vp.SptConfig(), r"needs a plan, .* vision_peft.spt_config\(model, loader"),
    "other names": (
        lambda model: vp.SptConfig(plan={"ranks": {"blocks.0.attn.qkv.w.weight": 8}}),
        r"plan.ranks names 'blocks.0.attn.qkv.w.weight', which is not there \(did you mean",
    ),
    "too many entries": (
        lambda model: vp.SptConfig(plan={"entries": {"fc_norm.weight": 999}}),
        r"plan.entries\['fc_norm.weight'\] must be at most 128",
    ),
    "rank of a vector": (lambda model: vp.SptConfig(plan={"ranks": {"fc_norm.weight": 2}}), "which is no matrix"),
    "rank above the matrix": (
        lambda model: vp.SptConfig(plan={"ranks": {"blocks.0.attn.proj.weight": 200}}),
        r"rank 200 exceeds the smaller side of 'blocks.0.attn.proj.weight' \(128 × 128\)",
    ),
    "rank above every matrix": (unplannable(rank=200), "rank 200 exceeds the smaller side"),
    "budget above the model": (unplannable(budget=10**9), r"budget of 1,000,000,000 is above the [\d,]+ parameters"),
    "no budget": (unplannable(budget=0), "SptConfig.budget must be above 0; found 0"),
    "budget below the token": (
        unplannable(budget=100, always_train=["pos_embed"]),
        r"the budget of 100 is below the [\d,]+ parameters that are always trained",
    ),
    "budget below one hit": (
        unplannable(budget=2, budget_rule="closest"),
        "no number of hits comes near the budget of 2",
    ),
    "only what is never scored": (
        unplannable(target_modules=["patch_embed.proj", "head"]),
        "SPT finds nothing to train in VisionTransformer",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_setting_gets_one_error_and_changes_nothing(case: str) -> None:
    make, said = WRONG[case]
    model = small_model()
    before = structure(model)
    with pytest.raises(ValueError, match=said):
        get_peft_model(model, make(model))
    assert structure(model) == before


def test_scores_of_another_model_are_refused() -> None:
    model, scores = small_model(), scores_of(small_model())
    with pytest.raises(ValueError, match=r"there are no scores for 'blocks.1.norm1.weight'"):
        vp.SptConfig.from_scores(model, {n: s for n, s in scores.items() if n != "blocks.1.norm1.weight"})
    with pytest.raises(ValueError, match=r"must have its shape \(384, 128\)"):
        vp.SptConfig.from_scores(model, {**scores, "blocks.0.attn.qkv.weight": torch.ones(3)})
    with pytest.raises(ValueError, match=r"scores must be finite and not negative; those of 'fc_norm.bias'"):
        vp.SptConfig.from_scores(model, {**scores, "fc_norm.bias": torch.full((128,), torch.nan)}, budget=900)
    with pytest.raises(ValueError, match="all scores are 0"):
        vp.SptConfig.from_scores(model, {name: torch.zeros_like(s) for name, s in scores.items()}, budget=900)


def test_budget_out_of_reach_is_met_as_nearly_as_possible_with_a_warning() -> None:
    model = small_model()
    size = sum(place.size for place in places(model, vp.SptConfig()).values())
    with pytest.warns(UserWarning, match=r"no more than [\d,]+ of [\d,]+ parameters can be trained here"):
        plan = Plan.read(config(model, budget=size).plan or {})
    assert not plan.entries


def test_everything_of_a_layer_is_found_by_its_type() -> None:
    """ConvNeXt: depthwise filters have entries only, its layer scale is a raw vector, trained whole or not at all."""
    model = timm.create_model("convnext_atto", num_classes=3, depths=(1, 1, 1, 1), dims=(8, 12, 16, 20))
    known = places(model, vp.SptConfig(rank=4))
    assert known["stages.0.blocks.0.mlp.fc1.weight"].is_matrix
    assert not known["stages.0.blocks.0.conv_dw.weight"].is_matrix
    assert known["stages.0.blocks.0.gamma"].module is None
    assert known["stages.1.downsample.1.weight"].columns == 8 * 2 * 2
    assert not [name for name in known if name.startswith(("stem", "head.fc"))]
    how = candidates(vp.SptConfig(rank=4), known)
    assert how["stages.0.blocks.0.conv_dw.weight"] == Candidate(None)
    assert how["stages.0.blocks.0.gamma"] == Candidate(8, 5.0, single=False)
    made = config(model, budget=0.3, rank=4)
    adapted: Any = get_peft_model(model, made)  # type: ignore[arg-type]
    x = torch.randn(2, 3, 64, 64)
    adapted(x).sum().backward()
    assert any("gamma" in name and p.requires_grad for name, p in adapted.named_parameters())
    assert any(isinstance(m, SptAdapter) for m in adapted.modules())
