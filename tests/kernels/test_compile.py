"""`torch.compile` makes one graph of a whole adapted model: `fullgraph=True` raises at the first break."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch._dynamo.testing
from peft import get_peft_model
from torch import Tensor, nn

import vision_peft as vp

SMALL: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2}
SNELL: dict[str, dict[str, Any]] = {
    "defaults": {"dropout": 0.0, "drop_path": 0.0},
    "identity start": {"dropout": 0.0, "drop_path": 0.0, "init": "identity"},
    "rbf, soft gate": {"dropout": 0.0, "drop_path": 0.0, "kernel": "rbf", "gate": "soft", "sparsity": 0.3},
}


def adapted(config: Any) -> Any:
    torch.manual_seed(0)
    model = get_peft_model(timm.create_model("vit_tiny_patch16_224", num_classes=3, **SMALL), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(batch))


def whole(model: nn.Module) -> Any:
    torch._dynamo.reset()
    return torch.compile(model, backend="aot_eager", fullgraph=True)


def gradients(model: nn.Module, output: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    output.square().sum().backward()
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("case", SNELL)
def test_snell_is_one_graph_with_equal_gradients(case: str) -> None:
    model = adapted(vp.SnellConfig(r=4, **SNELL[case]))
    eager = model(images())
    expected = gradients(model, eager)
    output = whole(model)(images())
    torch.testing.assert_close(output, eager)
    found = gradients(model, output)
    assert found.keys() == expected.keys()
    assert any(key.endswith("cls_token") for key in found)
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-4, atol=1e-5 * expected[key].abs().max().item())


def test_snell_with_dropout_and_drop_path_is_one_graph() -> None:
    model = adapted(vp.SnellConfig(r=4, sparsity=0.5, dropout=0.5, drop_path=0.5)).train()
    compiled, x = whole(model), images(8)
    first, second = compiled(x), compiled(x)
    assert not torch.equal(first, second)  # other masks
    found = gradients(model, first)
    assert all(gradient.isfinite().all() for gradient in found.values())


@pytest.mark.parametrize("position", ["post", "parallel"])
def test_adapter_plus_is_one_graph(position: str) -> None:
    model = adapted(vp.AdapterPlusConfig(position=position)).eval()
    expected = gradients(model, model(images()))
    found = gradients(model, whole(model)(images()))
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-4, atol=1e-5 * expected[key].abs().max().item())


def test_constants_of_a_layer_do_not_compile_it_again() -> None:
    model = adapted(vp.SnellConfig(r=4, dropout=0.0, drop_path=0.0)).eval()
    counter = torch._dynamo.testing.CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        for _ in range(3):
            compiled(images())
    assert counter.frame_count == 1
