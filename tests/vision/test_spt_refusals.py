"""What SPT cannot plan or attach gets one error and changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from peft import get_peft_model

import vision_peft as vp
from peft_kernels.budget import Plan
from peft_kernels.hits import Candidate
from tests.kernels.saved_adapters import small_model, structure
from tests.vision.spt_models import config, scores_of
from vision_peft.methods.spt.adapter import SptAdapter
from vision_peft.methods.spt.places import places
from vision_peft.methods.spt.selection import candidates


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
