"""What SaRA selects: by threshold, density and number, in which tensors, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn

import diffusion_peft as dp
from diffusion_peft.methods.sara.layer import SaraLayer

from .sara_models import adapted, batch, mixed, move, trained

TOKENS = batch()[0]
MATRICES, BIASES = ("conv.weight", "up.weight", "down.weight"), ("conv.bias", "norm.bias", "up.bias")


def test_selected_is_what_lies_below_the_threshold_in_every_kind_of_tensor() -> None:
    base, model = mixed(), adapted()
    layers = {n.removeprefix("base_model.model."): m for n, m in model.named_modules() if isinstance(m, SaraLayer)}
    for name, tensor in base.named_parameters():
        owner, _, leaf = name.rpartition(".")
        expected = (tensor.abs() < 0.03).flatten().nonzero().squeeze(1)
        adapter: Any = layers[owner].adapters["default"]
        part = adapter.part(leaf)
        assert torch.equal(part.index.long(), expected)
        assert torch.equal(part.values, tensor.flatten()[expected])
        assert 0 < len(expected) < tensor.numel()


def test_modules_without_small_entries_stay_plain() -> None:
    base = mixed()
    base.norm.weight.fill_(1.0)
    base.norm.bias.fill_(1.0)
    model: Any = get_peft_model(base, dp.SaraConfig(threshold=0.03, modules_to_save=[]))  # type: ignore[arg-type]
    assert isinstance(model.base_model.model.norm, nn.LayerNorm)
    assert isinstance(model.base_model.model.up, SaraLayer)


@pytest.mark.parametrize(
    ("fields", "kinds"),
    [
        ({}, {*MATRICES, *BIASES, "norm.weight", "table.weight"}),
        ({"train_bias": False}, {*MATRICES, "norm.weight", "table.weight"}),
        ({"train_norm": False, "train_embedding": False}, {*MATRICES, *BIASES}),
        ({"target_modules": ["up"]}, {"up.weight", "up.bias"}),
    ],
)
def test_kinds_of_tensors_can_be_left_out(fields: dict[str, Any], kinds: set[str]) -> None:
    model = adapted(threshold=0.09, **fields)
    assert set(model.active_peft_config.plan["entries"]) == kinds  # type: ignore[attr-defined]


def test_density_and_number_choose_the_threshold() -> None:
    sizes = {name: p.numel() for name, p in mixed().named_parameters()}
    whole = sum(sizes.values())
    by_number, by_share = adapted(num_trainable=777), adapted(density=777 / whole)
    for model in (by_number, by_share):
        config: Any = model.active_peft_config
        assert sum(config.plan["entries"].values()) == sum(p.numel() for p in trained(model).values()) == 777
        assert sum(dp.sara_counts(mixed(), [config.threshold])[config.threshold].values()) == 777
    each: Any = adapted(density=0.1, scope="per_tensor").active_peft_config
    assert each.plan["entries"] == {name: round(0.1 * size) for name, size in sizes.items() if round(0.1 * size)}
    assert each.threshold is None


def test_counts_are_known_before_anything_is_attached() -> None:
    base = mixed()
    before = {name: p.clone() for name, p in base.named_parameters()}
    found = dp.sara_counts(base, (0.01, 0.03), train_bias=False)
    for threshold, counts in found.items():
        expected = {n: int((p.abs() < threshold).sum()) for n, p in before.items() if not n.endswith("bias")}
        assert counts == expected
    assert all(torch.equal(p, before[name]) for name, p in base.named_parameters())


def test_gaussian_weights_give_the_published_share() -> None:
    """σ = 0.0274 as in Stable Diffusion 1.5: 2e-3 selects 5.82 %, 8e-4 2.33 %, 2e-4 0.58 %."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(4)))
    for layer in model:
        nn.init.normal_(layer.weight, std=0.0274)  # type: ignore[arg-type]
    for threshold, share in ((2e-3, 5.82), (8e-4, 2.33), (2e-4, 0.58)):
        count = sum(dp.sara_counts(model, [threshold])[threshold].values())
        assert 100 * count / (4 * 1024**2) == pytest.approx(share, abs=0.05)


def test_tied_tensors_are_selected_and_trained_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(9, 30), nn.Linear(30, 9, bias=False)
            self.head.weight = self.table.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(self.table(tokens))

    torch.manual_seed(0)
    base = Tied()
    small = int((base.table.weight.abs() < 0.3).sum())
    y = base(TOKENS)
    model = get_peft_model(base, dp.SaraConfig(threshold=0.3, modules_to_save=[]))  # type: ignore[arg-type]
    assert [p.numel() for p in trained(model).values()] == [small]
    assert torch.equal(model(TOKENS), y)
    move(model)
    changed: Any = model.base_model.model
    assert torch.equal(changed.head.weight, changed.table.weight)
    assert not torch.equal(model(TOKENS), y)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"threshold": 0.0}, "threshold must be above 0; found 0"),
    ({"threshold": -1e-3}, "threshold must be above 0"),
    ({"threshold": float("nan")}, "threshold must be above 0"),
    ({"threshold": 1e-3, "density": 0.1}, "one of threshold, density and num_trainable; found threshold=0.001 and"),
    ({"density": 1.0}, r"density must be in \(0, 1\); found 1"),
    ({"num_trainable": 0}, "num_trainable must be an integer >= 1; found 0"),
    ({"scope": "per_tensors", "density": 0.1}, "did you mean 'per_tensor'"),
    ({"scope": "per_tensor"}, "give density"),
    ({"rank_weight": -1.0}, "rank_weight must be at least 0"),
    ({"rank_weight": float("inf")}, "rank_weight must be at least 0; found inf"),
    ({"rank_seed": -1}, "rank_seed must be an integer >= 0; found -1"),
    ({"rank_every": 0}, "rank_every must be an integer >= 1"),
    ({"reselect_step": -1}, "reselect_step must be an integer >= 0; found -1"),
    ({"alpha": 2.5}, r"alpha must be in \[0, 2\]; found 2.5"),
]


@pytest.mark.parametrize(("fields", "match"), BAD, ids=lambda value: value if isinstance(value, str) else None)
def test_bad_settings_raise(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        dp.SaraConfig(**fields)


def _quantised(model: nn.Module) -> None:
    up: Any = model.get_submodule("up")
    up.weight = nn.Parameter(torch.zeros(80, 70, dtype=torch.uint8), requires_grad=False)


def _on_meta(model: nn.Module) -> None:
    model.to("meta")


def _too_large(model: nn.Module) -> None:
    up: Any = model.get_submodule("up")
    up.weight = nn.Parameter(torch.zeros(1, 1).expand(2**16, 2**15), requires_grad=False)  # one number in memory


@pytest.mark.parametrize(
    ("fields", "spoil", "match"),
    [
        ({"threshold": 1e-9}, None, "threshold 1e-09 selects none of the 11,794 entries"),
        ({"threshold": 1e3}, None, "threshold 1000 selects all 11,794 entries: lower it, or take full fine-tuning"),
        ({"num_trainable": 10**9}, None, "must be less than the 11,794 entries; found 1,000,000,000"),
        ({}, _quantised, r"'up.weight' is quantised .*, or take .* LoRA"),
        ({}, _on_meta, "has no values"),
        ({}, _too_large, r"'up.weight' has 2,147,483,648 entries: .* 32 bits, which end at 2,147,483,647"),
        ({"plan": {"entries": {"up.weight": 3}}}, _too_large, "kept in 32 bits; a tensor of 2147483648 entries"),
        ({"plan": {"entries": {"upp.weight": 3}}}, None, "did you mean 'up.weight'"),
    ],
)
def test_what_cannot_be_selected_raises_and_leaves_the_model_as_it_was(
    fields: dict[str, Any], spoil: Callable[[nn.Module], None] | None, match: str
) -> None:
    model = mixed()
    if spoil:
        spoil(model)
    modules = list(model.modules())
    with pytest.raises(ValueError, match=match):
        get_peft_model(model, dp.SaraConfig(modules_to_save=[], **fields))  # type: ignore[arg-type]
    assert list(model.modules()) == modules


def test_merged_weights_are_not_selected_in() -> None:
    model: Any = adapted()
    move(model)
    model.merge_adapter()
    merged, modules = model(TOKENS), list(model.modules())
    with pytest.raises(ValueError, match=r"an adapter is merged into 'table': .* unmerge first"):
        model.add_adapter("second", dp.SaraConfig(threshold=0.03, modules_to_save=[]))
    assert list(model.modules()) == modules
    assert list(model.peft_config) == ["default"]
    assert torch.equal(model(TOKENS), merged)
    model.unmerge_adapter()
    model.add_adapter("second", dp.SaraConfig(threshold=0.03, modules_to_save=[]))
    plans = [model.peft_config[name].plan for name in ("default", "second")]
    assert plans[0] == plans[1]
