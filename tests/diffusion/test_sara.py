"""SaRA attached: its start at the base model, strengths, merging, memory, diffusers' and timm's models."""

from __future__ import annotations

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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("threshold", [1e-4, 0.03, 0.25])
def test_attached_it_is_the_base_model_bit_for_bit(dtype: torch.dtype, threshold: float) -> None:
    base, model = mixed(dtype)(TOKENS), adapted(dtype, threshold=threshold)
    assert torch.equal(model(TOKENS), base)
    kept = torch.promote_types(dtype, torch.float32)
    assert {p.dtype for p in trained(model).values()} == {kept}


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
    whole_branches: dict[str, Any] = {"zero_init_last": False} if name == "resnet18" else {}
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
    assert sum(p.numel() for p in head.values()) == 5 * int(model.num_features) + 5  # type: ignore[arg-type]
    assert all(key.endswith(".values") for key in entries)


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


def test_places_are_all_that_is_kept_beside_the_values() -> None:
    """No mask of a weight's size: eight bytes an entry, nine after the second selection, whatever the weights' size."""
    torch.manual_seed(0)
    base = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(3)))
    weights = held_bytes(base)
    model = get_peft_model(base, dp.SaraConfig(density=0.02, reselect_step=1, modules_to_save=[]))  # type: ignore[arg-type]
    sizes = [p.numel() for p in trained(model).values()]
    assert [(b.dtype, b.numel()) for b in model.buffers()] == [(torch.int32, size) for size in sizes]
    assert held_bytes(model) - weights == 8 * sum(sizes)
    optimiser = torch.optim.SGD(trained(model).values(), 1.0)
    allocator = dp.SaraAllocator(model, 4, optimiser)
    model(torch.randn(8, 512)).square().mean().backward()
    optimiser.step()
    assert allocator.update_and_allocate(0)["trained"] < sum(sizes)  # type: ignore[index]
    assert held_bytes(model, allocator) - weights == 9 * sum(sizes)


def held_bytes(model: nn.Module, *others: object) -> int:
    """What the tensors take that a model's modules, or other objects, have as attributes of any kind, each once."""
    owners = [vars(owner) for owner in (*model.modules(), *others)]
    inner = [value for own in owners for value in own.values() if isinstance(value, dict)]
    found = (value for own in (*owners, *inner) for value in own.values() if isinstance(value, torch.Tensor))
    return sum({storage.data_ptr(): storage.nbytes() for storage in (t.untyped_storage() for t in found)}.values())


def test_the_loss_reaches_nothing_but_the_values() -> None:
    model = adapted()
    loss_of(model).backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(trained(model))
