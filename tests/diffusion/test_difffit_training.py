"""Training with DiffFit: half precision, checkpointing, compilation, two processes, and the optimiser's groups."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import diffusion_peft as dp
from peft_runs.optim import build_optimizer
from peft_runs.recipe import OptimSpec

from .difffit_models import DENOISERS, attach, base, everything, gradients, move, run


def trained(name: str, model: Any = None, **fields: Any) -> Any:
    model = attach(base(name) if model is None else model, everything(name, **fields))
    move(model)
    return model.eval()


def close(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float) -> None:
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        size = expected[key].abs().max().item()
        torch.testing.assert_close(gradient.float(), expected[key].float(), rtol=rtol, atol=rtol * size + 1e-6, msg=key)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", DENOISERS)
def test_half_precision_model_trains_float32_parameters(name: str, dtype: torch.dtype) -> None:
    model = trained(name, base(name).to(dtype))
    with torch.no_grad():
        reference = run(name, trained(name))
    output = run(name, model, dtype)
    assert output.dtype == dtype
    assert (output.float() - reference).abs().max() < 0.1 * reference.abs().max()
    found = gradients(model, lambda: run(name, model, dtype))
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in found.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["dit", "sd15"])
def test_autocast_gives_float32_gradients(name: str, dtype: torch.dtype) -> None:
    model = trained(name)
    expected = gradients(model, lambda: run(name, model))
    with torch.autocast("cpu", dtype=dtype):
        found = gradients(model, lambda: run(name, model))
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    key = next(key for key in found if ".delta_gamma.attn_out" in key)
    torch.testing.assert_close(found[key], expected[key], rtol=0.1, atol=0.1 * expected[key].abs().max().item())


def test_small_steps_of_a_factor_are_not_lost_in_bfloat16() -> None:
    model = attach(base("dit").to(torch.bfloat16), everything("dit"))
    gammas = [p for key, p in model.named_parameters() if ".delta_gamma." in key]
    with torch.no_grad():
        for _ in range(3):
            for gamma in gammas:
                gamma += 1e-4
    assert all((gamma - 3e-4).abs().max() < 1e-9 for gamma in gammas)


def test_merging_into_bfloat16_rounds_once() -> None:
    model = trained("dit", base("dit").to(torch.bfloat16))
    layer = model.get_submodule("base_model.model.transformer_blocks.0.ff.net.2")
    adapter = layer.adapters["default"]
    weight, bias = (tensor.detach().clone() for tensor in (layer.base_layer.weight, layer.base_layer.bias))
    gamma = (1 + adapter.delta_gamma["ffn_out"]) * (1 + adapter.delta_gamma["ffn"])
    model.merge_adapter()
    assert torch.equal(layer.base_layer.weight, (gamma[:, None] * weight.float()).to(torch.bfloat16))
    assert torch.equal(layer.base_layer.bias, (gamma * (bias.float() + adapter.delta_bias)).to(torch.bfloat16))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["dit", "sd15"])
def test_gradient_checkpointing_gives_the_same_gradients(name: str, reentrant: bool) -> None:
    model = trained(name)
    expected = gradients(model, lambda: run(name, model))
    base_model = model.get_base_model()

    def checkpointed(function: Any, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(function, *args, use_reentrant=reentrant, **kwargs)

    base_model.enable_gradient_checkpointing(checkpointed)
    model.train()
    found = gradients(model, lambda: run(name, model))
    close(found, expected, 1e-5)


def test_compiled_model_gives_the_same_gradients() -> None:
    model = trained("dit")
    expected = gradients(model, lambda: run("dit", model))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    close(gradients(model, lambda: run("dit", compiled)), expected, 1e-4)


def distributed(rank: int, folder: str) -> None:
    """One of two processes: its half of the batch, and the gradients that both then have."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = trained("sd3")
    parallel = nn.parallel.DistributedDataParallel(model)
    y = run("sd3", parallel)[rank : rank + 1]
    (2 * y.square().sum()).backward()
    torch.save({n: p.grad for n, p in model.named_parameters() if p.requires_grad}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux", reason="the processes meet through gloo")
def test_two_processes_have_the_gradients_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))  # where the new processes find this module
    torch.multiprocessing.spawn(distributed, (str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    model = trained("sd3")
    run("sd3", model).square().sum().backward()
    expected = {n: p.grad for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    for gradients_of_one in found:
        close(gradients_of_one, expected, 1e-4)


def test_the_training_loop_gives_factors_and_biases_ten_times_the_rate_without_decay() -> None:
    model = attach(base("vit"), dp.DiffFitConfig(lr_ratio=10.0))  # with its classifier
    optimizer = build_optimizer(model, model.get_base_model(), OptimSpec(lr=1e-4, weight_decay=0.1))
    settings = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            head = (1e-4, 0.1 if parameter.ndim > 1 else 0.0)
            expected = head if ".modules_to_save." in name else (pytest.approx(1e-3), 0.0)
            assert settings[id(parameter)] == expected, name
