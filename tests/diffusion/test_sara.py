"""SaRA attached: what is selected, its start at the base model, strengths, merging, diffusers' and timm's models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from peft import get_peft_model
from torch import nn

import diffusion_peft as dp
import vision_peft  # noqa: F401 (registers vit_mini)
from diffusion_peft.methods.sara.layer import SaraLayer

from ..kernels.tiny_unet import run, unet
from .sara_models import adapted, batch, loss_of, mixed, move, trained

TOKENS = batch()[0]
MATRICES, BIASES = ("conv.weight", "up.weight", "down.weight"), ("conv.bias", "norm.bias", "up.bias")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("threshold", [1e-4, 0.03, 0.25])
def test_attached_it_is_the_base_model_bit_for_bit(dtype: torch.dtype, threshold: float) -> None:
    base, model = mixed(dtype)(TOKENS), adapted(dtype, threshold=threshold)
    assert torch.equal(model(TOKENS), base)
    kept = torch.promote_types(dtype, torch.float32)
    assert {p.dtype for p in trained(model).values()} == {kept}


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


def test_learning_rate_of_the_paper() -> None:
    rates = {2e-4: 9.324e-4, 8e-4: 7.558e-4, 2e-3: 4.966e-4, 5e-3: 1.738e-4, 1e-2: 3.02e-5}
    for threshold, rate in rates.items():
        assert dp.SaraConfig(threshold=threshold).learning_rate == pytest.approx(rate, rel=1e-3)


def test_strength_0_is_the_base_and_adapters_add_up() -> None:
    model, base = adapted(), mixed()(TOKENS)
    move(model)
    one = model(TOKENS)
    model.add_adapter("two", dp.SaraConfig(threshold=0.05, modules_to_save=[]))
    move(model, seed=5, adapter="two")
    layers: list[Any] = [m for m in model.modules() if isinstance(m, SaraLayer)]

    def strengths(**weights: float) -> None:
        model.base_model.set_adapter(list(weights))  # type: ignore[operator]
        for layer in layers:
            for name, weight in weights.items():
                layer.set_scale(name, weight)

    strengths(default=0.0)
    assert torch.equal(model(TOKENS), base)
    strengths(default=1.0)
    assert torch.equal(model(TOKENS), one)
    strengths(default=0.6, two=0.6)
    both = model(TOKENS)
    plain = mixed()
    for layer, (name, module) in zip(layers, ((n, m) for n, m in plain.named_modules() if n), strict=True):
        for leaf, tensor in module.named_parameters():
            changes = [a.part(leaf).summand(tensor) for a in layer.adapters.values() if leaf in a.tensors]
            with torch.no_grad():
                tensor.add_(0.6 * sum(changes))
        assert changes, name
    torch.testing.assert_close(both, plain(TOKENS), rtol=1e-5, atol=1e-6)


def test_alpha_is_the_strength_at_weight_1() -> None:
    whole, half = adapted(), adapted(alpha=0.5)
    for model in (whole, half):
        move(model)
    for layer in (m for m in whole.modules() if isinstance(m, SaraLayer)):
        layer.set_scale("default", 0.5)
    torch.testing.assert_close(half(TOKENS), whole(TOKENS))
    start, none = mixed()(TOKENS), adapted(alpha=0.0)
    move(none)
    assert torch.equal(none(TOKENS), start)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_puts_the_values_in_and_back_bit_for_bit(dtype: torch.dtype) -> None:
    model, base = adapted(dtype), mixed(dtype)
    move(model)
    y = model(TOKENS)
    layers = [m for m in model.modules() if isinstance(m, SaraLayer)]
    model.merge_adapter()  # type: ignore[operator]
    for layer in layers:
        for name in layer.adapters["default"].tensors:  # type: ignore[union-attr]
            part: Any = layer.adapters["default"].part(name)  # type: ignore[operator]
            merged = getattr(layer.base_layer, name).flatten()
            assert torch.equal(merged[part.index.long()], part.values.to(dtype))
    assert torch.equal(model(TOKENS), y)
    model.unmerge_adapter()  # type: ignore[operator]
    with model.disable_adapter():
        assert torch.equal(model(TOKENS), base(TOKENS))
    assert torch.equal(model(TOKENS), y)
    plain: Any = model.merge_and_unload()  # type: ignore[operator]
    assert [type(m) for m in plain.modules()] == [type(m) for m in base.modules()]
    assert torch.equal(plain(TOKENS), y)


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


def test_one_line_on_diffusers_unet() -> None:
    model, base = unet(), run(unet())
    model.add_adapter(dp.SaraConfig(threshold=0.02), "one")
    assert torch.equal(run(model), base)
    y = model(torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 5, 12)).sample
    y.square().sum().backward()
    found = trained(model)
    assert all(".one.entries." in name and p.grad is not None for name, p in found.items())
    torch.optim.SGD(found.values(), 0.1).step()
    tuned = run(model)
    assert not torch.equal(tuned, base)
    model.disable_adapters()
    assert torch.equal(run(model), base)
    model.enable_adapters()
    model.add_adapter(dp.SaraConfig(density=0.1), "two")
    model.set_adapters("one")
    assert torch.equal(run(model), tuned)
    model.delete_adapters("two")
    model.fuse_lora()
    torch.testing.assert_close(run(model), tuned, rtol=1e-4, atol=1e-5)
    model.unfuse_lora()
    model.delete_adapters("one")
    assert torch.equal(run(model), base)


@pytest.mark.parametrize("name", ["vit_mini", "convnext_atto", "resnet18"])
def test_timm_models_keep_their_classifier_trained_in_full(name: str) -> None:
    whole_branches = {"zero_init_last": False} if name == "resnet18" else {}
    model = timm.create_model(name, num_classes=5, **whole_branches).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        y = model(x)
    adapted: Any = get_peft_model(model, dp.SaraConfig(density=0.02)).eval()  # type: ignore[arg-type]
    assert torch.equal(adapted(x).detach(), y)
    entries, head = {}, {}
    adapted(x).square().sum().backward()
    for key, p in trained(adapted).items():
        (head if ".modules_to_save." in key else entries)[key] = p
        assert p.grad is not None, key
        assert p.grad.abs().sum() > 0 or p.numel() < 50, key
    assert sum(p.numel() for p in head.values()) == 5 * model.num_features + 5
    assert all(key.endswith(".values") for key in entries)


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


@pytest.mark.parametrize(
    ("fields", "spoil", "match"),
    [
        ({"threshold": 1e-9}, None, "threshold 1e-09 selects none of the 11,794 entries"),
        ({"threshold": 1e3}, None, "threshold 1000 selects all 11,794 entries: lower it, or take full fine-tuning"),
        ({"num_trainable": 10**9}, None, "must be less than the 11,794 entries; found 1,000,000,000"),
        ({}, _quantised, r"'up.weight' is quantised .*, or take .* LoRA"),
        ({}, _on_meta, "has no values"),
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


def test_no_more_than_one_block_of_a_dense_gradient_exists_at_once() -> None:
    """Of twelve linear layers in a row, what the backward pass holds is less than two weights and the values."""
    from torch.profiler import ProfilerActivity, profile

    torch.manual_seed(0)
    width = 256
    base = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(12)))
    model = get_peft_model(base, dp.SaraConfig(density=0.05, modules_to_save=[]))  # type: ignore[arg-type]
    assert all(b.numel() < width**2 for b in model.buffers())
    x = torch.randn(8, width)
    model(x).sum().backward()
    model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        model(x).sum().backward()
    results: Any = record.profiler.kineto_results  # type: ignore[union-attr]
    held = peak = 0
    for _, size in sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"):
        held += size
        peak = max(peak, held)
    values = 4 * sum(p.numel() for p in trained(model).values())
    assert peak < 2 * 4 * width**2 + 3 * values + 12 * 3 * x.nbytes


def test_the_loss_reaches_nothing_but_the_values() -> None:
    model = adapted()
    loss_of(model).backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(trained(model))
