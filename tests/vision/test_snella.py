"""SNELLA as its users meet it: sparsities that move and travel with the adapter, and a budget kept to the entry."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import diffusers
import pytest
import timm
import torch
from peft import PeftModel, get_peft_model
from timm.utils import ModelEmaV3
from torch import Tensor, nn

import vision_peft as vp

STEPS, EPOCH = 8, 2


def base() -> nn.Module:
    torch.manual_seed(0)
    fields: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, **fields)


def adapted(**fields: Any) -> Any:
    torch.manual_seed(1)
    return get_peft_model(base(), vp.SnellaConfig(**{"r": 4, "dropout": 0.0, "drop_path": 0.0, **fields}))


def inputs(seed: int = 0) -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def train(model: Any, steps: range, optimizer: torch.optim.Optimizer | None = None) -> torch.optim.Optimizer:
    optimizer = optimizer or torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model.train()
    for step in steps:
        torch.nn.functional.cross_entropy(model(inputs(step)), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
        model.update_and_allocate(step)
        optimizer.zero_grad()
    return optimizer


def sparsities(model: nn.Module) -> list[float]:
    return [buffer.item() for name, buffer in model.named_buffers() if name.endswith(".sparsity")]


@torch.no_grad()
def outputs(model: nn.Module) -> Tensor:
    return model.eval()(inputs(99))


@pytest.fixture(scope="module")
def trained() -> Any:
    model = adapted(target_sparsity=0.8)
    model.begin_allocation(STEPS, EPOCH)
    train(model, range(STEPS))
    return model


def test_the_budget_is_kept_to_the_entry(trained: Any) -> None:
    allocator = trained.allocator
    entries = sum(allocator.capacity.values())
    assert [decided["round"] for decided in allocator.history] == [1, 2, 3]
    for decided in allocator.history:
        assert decided["budget"] == int((0.2 + 0.79 * (1 - decided["round"] / 4) ** 3) * entries)
        assert sum(decided["kept"].values()) == decided["budget"]
    assert len(set(sparsities(trained))) > 6
    for name, points in allocator.layers.items():
        size, s = allocator.capacity[name], points.sparsity.item()
        survivors = int(torch.count_nonzero(points(torch.empty(points.shape))))
        assert survivors == size - 1 - math.floor(s * (size - 1))
        assert points.shape[1] <= allocator.history[-1]["kept"][name] <= size  # a row's worth at least


def test_the_file_alone_brings_sparsities_and_outputs_back(trained: Any, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path)
    for load in (PeftModel.from_pretrained, vp.load_adapter):
        fresh = load(base(), tmp_path)
        assert sparsities(fresh) == sparsities(trained)
        assert torch.equal(outputs(fresh), outputs(trained))


def test_merged_outputs_with_a_sparsity_of_each_row_block(trained: Any) -> None:
    model = copy.deepcopy(trained)
    for block, s in (("q", 0.2), ("k", 0.5), ("v", 0.95)):
        next(m for m in model.modules() if getattr(m, "key", "") == f"blocks.0.attn.qkv.{block}").set_sparsity(s)
    before, weight = outputs(model), model.get_base_model().blocks[0].attn.qkv.base_layer.weight.clone()
    model.merge_adapter()
    torch.testing.assert_close(outputs(model), before, rtol=2e-6, atol=2e-6)
    model.unmerge_adapter()
    assert torch.equal(model.get_base_model().blocks[0].attn.qkv.base_layer.weight, weight)
    torch.testing.assert_close(outputs(model.merge_and_unload()), before, rtol=2e-6, atol=2e-6)


def test_final_sparsities_serve_a_snell_run(trained: Any) -> None:
    pattern = trained.allocator.sparsity_pattern()
    fields: dict[str, Any] = {"r": 4, "kernel": "piecewise_linear", "gate": "magnitude"}
    snell = get_peft_model(base(), vp.SnellConfig(**fields, sparsity_pattern=pattern))
    for name, points in trained.allocator.layers.items():
        twin: Any = next(m for m in snell.modules() if getattr(m, "key", None) == name)
        assert twin.share == pattern[name] == points.share


def test_half_precision_keeps_the_sparsity_exact(trained: Any) -> None:
    half = copy.deepcopy(trained).to(torch.bfloat16)
    assert sparsities(half) == sparsities(trained)
    assert outputs(half.float()).isfinite().all()


def test_an_average_of_weights_runs_at_the_present_sparsity(trained: Any) -> None:
    model = adapted(target_sparsity=0.8)
    model.begin_allocation(STEPS, EPOCH)
    average = ModelEmaV3(model, decay=0.0, use_warmup=False)  # a copy of the weights as they are
    outputs(average.module)
    train(model, range(STEPS))
    average.update(model)
    assert sparsities(average.module) == pytest.approx(sparsities(model))
    torch.testing.assert_close(outputs(average.module), outputs(model), rtol=1e-6, atol=1e-6)


def test_sparsities_written_to_the_buffers_are_noticed(trained: Any) -> None:
    model = copy.deepcopy(trained)
    before = outputs(model)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith(".sparsity"):
                buffer.fill_(1.0)
    torch.testing.assert_close(outputs(model), outputs(model.get_base_model().eval()), rtol=0, atol=0)
    assert not torch.equal(outputs(model), before)
    model.load_state_dict(trained.state_dict())
    assert torch.equal(outputs(model), before)


def test_a_compiled_model_follows_the_sparsity() -> None:
    torch._dynamo.reset()
    model = adapted(gate="magnitude")
    fast: Any = torch.compile(model, backend="aot_eager")
    points = [m for m in model.modules() if hasattr(m, "set_sparsity")]
    for s in (0.0, 0.5, 0.9):
        for one in points:
            one.set_sparsity(s)
        torch.testing.assert_close(outputs(fast), outputs(model), rtol=1e-5, atol=1e-6)


def test_a_run_goes_on_where_it_stopped() -> None:
    whole = adapted(target_sparsity=0.8)
    whole.begin_allocation(STEPS, EPOCH)
    train(whole, range(STEPS))

    first = adapted(target_sparsity=0.8)
    first.begin_allocation(STEPS, EPOCH)
    optimizer = train(first, range(5))
    second = adapted(target_sparsity=0.8)
    second.begin_allocation(STEPS, EPOCH)
    second.load_state_dict(first.state_dict())
    second.allocator.load_state_dict(copy.deepcopy(first.allocator.state_dict()))
    moments = torch.optim.AdamW([p for p in second.parameters() if p.requires_grad], lr=1e-3)
    moments.load_state_dict(optimizer.state_dict())
    train(second, range(5, STEPS), moments)
    assert sparsities(second) == sparsities(whole)
    assert torch.equal(outputs(second), outputs(whole))


def test_a_state_of_another_run_is_refused(trained: Any) -> None:
    other = adapted(target_sparsity=0.7)
    other.begin_allocation(STEPS, EPOCH)
    with pytest.raises(ValueError, match="of the schedule"):
        other.allocator.load_state_dict(trained.allocator.state_dict())
    fewer = adapted(target_sparsity=0.8, target_modules=["attn.proj"])
    fewer.begin_allocation(STEPS, EPOCH)
    with pytest.raises(ValueError, match="other layers"):
        fewer.allocator.load_state_dict(trained.allocator.state_dict())


def test_a_step_that_overflowed_is_left_out() -> None:
    model = adapted(unit="step", total=9)
    train(model, range(1))
    before = {name: tensor.clone() for name, tensor in model.allocator.importance.E.items()}
    points = next(iter(model.allocator.layers.values()))
    points.A.grad = torch.full_like(points.A, math.inf)
    decided = model.update_and_allocate(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.allocator.importance.E.items())
    assert all(math.isfinite(s) for s in decided["sparsity"].values())


def test_layers_that_nothing_reached_share_alike() -> None:
    model = adapted(unit="step", total=9, target_modules=["attn.proj"])
    decided = model.update_and_allocate(0)  # no gradient anywhere
    assert decided["scores"] == {"blocks.0.attn.proj": 0.5, "blocks.1.attn.proj": 0.5}
    assert len(set(decided["kept"].values())) == 1


@pytest.mark.parametrize(("weighted", "ratio"), [(False, 1), (True, 4)])
def test_size_counts_only_if_asked_for(weighted: bool, ratio: int) -> None:
    fields: dict[str, Any] = {"unit": "step", "total": 4, "target_sparsity": 0.9, "min_keep": 0}
    config = vp.SnellaConfig(r=2, target_modules=["0", "1"], size_weighted=weighted, **fields)
    model = get_peft_model(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 32)), config)
    allocator: Any = model.base_model.begin_allocation()  # type: ignore[operator]
    for tensor in (*allocator.importance.E.values(), *allocator.importance.U.values()):
        tensor.fill_(1.0)
    kept = allocator.allocate(3)["kept"]
    assert kept["1"] == pytest.approx(ratio * kept["0"], abs=ratio)


def test_a_dense_adapter_has_no_budget() -> None:
    model = adapted(gate="none")
    assert model.update_and_allocate(0) is None
    with pytest.raises(ValueError, match="no SNELLA layer with a gate"):
        vp.SnellaAllocator(model, 10, 2)


def test_a_run_whose_length_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="steps_per_epoch"):
        adapted().update_and_allocate(0)
    with pytest.raises(ValueError, match="give `total`"):
        adapted(unit="step").update_and_allocate(0)
    with pytest.raises(ValueError, match="total must be more than both warm-ups"):
        adapted(initial_warmup=2, final_warmup=2).begin_allocation(STEPS, EPOCH)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("total", {"total": 4, "initial_warmup": 2, "final_warmup": 2}),
        ("initial_sparsity", {"initial_sparsity": 1.0}),
        ("target_sparsity", {"target_sparsity": float("nan")}),
        ("kernel_p", {"kernel_p": 1.0}),
        ("gate", {"gate": "auto"}),
        ("unit", {"unit": "epochs"}),
        ("metric", {"metric": "w_mag"}),
        ("beta1", {"beta1": 1.0}),
        ("gamma0", {"gamma0": 0.0}),
        ("min_keep", {"min_keep": -1}),
        ("interval", {"interval": 0}),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name: str, fields: dict) -> None:
    with pytest.raises(ValueError, match=f"SnellaConfig.{name} must be"):
        vp.SnellaConfig(**fields)


def test_a_target_below_the_start_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="the budget will grow"):
        vp.SnellaConfig(initial_sparsity=0.5, target_sparsity=0.2)


def test_the_same_config_adapts_a_diffusers_unet() -> None:
    torch.manual_seed(0)
    unet: Any = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        cross_attention_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    call = {"sample": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([3, 7])}
    call["encoder_hidden_states"] = torch.randn(2, 5, 8)
    targets = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
    unet.add_adapter(vp.SnellaConfig(r=2, target_modules=targets, modules_to_save=[], dropout=0.0, drop_path=0.0))
    allocator = vp.SnellaAllocator(unet, steps=4, steps_per_epoch=1)
    parameters = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    for step in range(4):
        unet(**call).sample.square().mean().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)
        optimizer.step()
        allocator.update_and_allocate(step)
        optimizer.zero_grad()
    last = allocator.history[-1]
    assert sum(last["kept"].values()) == last["budget"] < 0.55 * sum(allocator.capacity.values())
    with torch.no_grad():
        on = unet(**call).sample
        unet.disable_adapters()
        assert not torch.equal(unet(**call).sample, on)
