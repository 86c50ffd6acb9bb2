"""Single trained entries of a frozen weight: the operators against the formula, in value and gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from peft_kernels.ops import sparse_conv, sparse_linear
from peft_kernels.ops.sparse_grad import entries, reference

CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "pointwise": ((2, 6, 5, 4), (8, 6, 1, 1), {}),
    "3x3": ((2, 6, 5, 4), (8, 6, 3, 3), {"padding": 1}),
    "strided, dilated": ((2, 6, 7, 5), (8, 6, 3, 3), {"stride": 2, "dilation": 2, "padding": 1}),
    "grouped": ((2, 6, 5, 4), (8, 3, 3, 3), {"groups": 2}),
    "depthwise": ((2, 6, 7, 5), (6, 1, 3, 3), {"groups": 6}),
    "1d": ((3, 6, 9), (4, 6, 3), {"stride": 2}),
    "3d": ((1, 2, 3, 4, 3), (4, 2, 1, 3, 2), {}),
}


def chosen(shape: tuple[int, ...], count: int, seed: int = 0) -> Tensor:
    """Ascending places of ``count`` entries."""
    order = torch.randperm(torch.Size(shape).numel(), generator=torch.Generator().manual_seed(seed))
    return order[:count].sort().values.int()


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def agree(run: Callable[..., Tensor], formula: Callable[..., Tensor], *inputs: Tensor, within: float) -> None:
    """Equal outputs, and equal gradients of every input, relative to the largest."""
    one, two = leaves(*inputs), leaves(*inputs)
    y, expected = run(*one), formula(*two)
    probe = torch.randn(expected.shape, dtype=expected.dtype, generator=torch.Generator().manual_seed(5))
    found = torch.autograd.grad(y, one, probe)
    for value, wanted in zip((y, *found), (expected, *torch.autograd.grad(expected, two, probe)), strict=True):
        assert value.shape == wanted.shape
        scale = float(wanted.detach().abs().max()) if wanted.numel() else 0.0
        torch.testing.assert_close(value, wanted, rtol=0, atol=within * max(scale, 1.0))


@settings(deadline=None, max_examples=60)
@given(
    batch=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    share=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    bias=st.booleans(),
    replace=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_linear_agrees_with_the_formula(batch, rows, columns, share, bias, replace, dtype) -> None:
    torch.manual_seed(rows * 10 + columns)
    weight = torch.randn(rows, columns, dtype=dtype)
    index = chosen((rows, columns), round(share * rows * columns))
    inputs = [torch.randn(*batch, columns, dtype=dtype), torch.randn(len(index), dtype=dtype)]
    inputs += [torch.randn(rows, dtype=dtype)] if bias else []
    within = 1e-12 if dtype == torch.float64 else 1e-5
    agree(
        lambda x, v, b=None: sparse_linear(x, weight, index, v, b, replace),
        lambda x, v, b=None: reference.sparse_linear(x, weight, index, v, b, replace),
        *inputs,
        within=within,
    )


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.04, 0.5, 1.0])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_agrees_with_the_formula(name: str, share: float, replace: bool) -> None:
    shape, size, options = CONVOLUTIONS[name]
    torch.manual_seed(0)
    weight = torch.randn(size, dtype=torch.float64)
    index = chosen(size, round(share * weight.numel()))
    inputs = (torch.randn(shape).double(), torch.randn(len(index)).double(), torch.randn(size[0]).double())
    agree(
        lambda x, v, b: sparse_conv(x, weight, index, v, b, replace=replace, **options),
        lambda x, v, b: reference.sparse_conv(x, weight, index, v, b, replace=replace, **options),
        *inputs,
        within=1e-12,
    )


@pytest.mark.parametrize("name", ["3x3", "grouped", "depthwise", "pointwise"])
def test_blocks_of_rows_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "BLOCK_ENTRIES", 40)
    monkeypatch.setattr(entries, "SAMPLED_SHARE", 0.0)
    test_convolution_agrees_with_the_formula(name, 0.04, False)
    weight = torch.randn(7, 9, dtype=torch.float64)
    index = torch.tensor([3, 30, 61])
    agree(
        lambda x, v: sparse_linear(x, weight, index, v),
        lambda x, v: reference.sparse_linear(x, weight, index, v),
        torch.randn(4, 9).double(),
        torch.randn(3).double(),
        within=1e-12,
    )


@pytest.mark.parametrize("replace", [False, True])
def test_gradients_are_those_of_finite_differences(replace: bool) -> None:
    weight, kernel = torch.randn(4, 5).double(), torch.randn(4, 2, 2, 2).double()
    index, bias = chosen((4, 5), 3), torch.randn(4).double().requires_grad_()
    x, image, values = leaves(torch.randn(2, 3, 5).double(), torch.randn(2, 4, 3, 3).double(), torch.randn(3).double())
    assert torch.autograd.gradcheck(
        lambda *a: sparse_linear(a[0], weight, index, a[1], a[2], replace), (x, values, bias)
    )
    assert torch.autograd.gradcheck(
        lambda *a: sparse_conv(a[0], kernel, index, a[1], a[2], groups=2, replace=replace), (image, values, bias)
    )


def test_every_entry_trained_is_dense_training() -> None:
    layer = nn.Linear(6, 4).double()
    index, values = torch.arange(24, dtype=torch.int32), torch.zeros(24, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, 6).double()
    sparse_linear(x, layer.weight, index, values, layer.bias.detach()).square().sum().backward()
    assert layer.weight.grad is None
    layer(x).square().sum().backward()
    assert layer.weight.grad is not None
    torch.testing.assert_close(values.grad, layer.weight.grad.flatten(), rtol=1e-12, atol=1e-12)


def test_same_entry_twice_adds_up() -> None:
    weight, index = torch.zeros(2, 3).double(), torch.tensor([1, 1, 4])
    values = torch.tensor([1.0, 2.0, 5.0]).double()
    agree(
        lambda x, v: sparse_linear(x, weight, index, v),
        lambda x, v: reference.sparse_linear(x, weight, index, v),
        torch.randn(4, 3).double(),
        values,
        within=1e-12,
    )


@pytest.mark.parametrize("way", ["as it is", "compiled"])
@pytest.mark.parametrize("cast", [False, True])
def test_nothing_of_the_weights_size_is_kept(way: str, cast: bool) -> None:
    weight, kernel = torch.randn(96, 64), torch.randn(48, 16, 2, 2)
    index = chosen((96, 64), 50)
    x, image, values = leaves(torch.randn(2, 5, 64), torch.randn(1, 16, 5, 8), torch.randn(50))

    def both(x: Tensor, image: Tensor, values: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast):
            y = sparse_linear(x, weight, index, values).sum()
            return y + sparse_conv(image, kernel, index // 2, values).sum()

    run = torch.compile(both, backend="aot_eager", fullgraph=True) if way == "compiled" else both
    kept: list[Tensor] = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        y = run(x, image, values)
    assert kept
    standing = {weight.data_ptr(), kernel.data_ptr()}  # by reference: they stand anyhow
    assert sum(t.numel() for t in kept if t.data_ptr() not in standing) <= 2 * (x.numel() + image.numel() + 4 * 50)
    y.backward()
    assert values.grad is not None
    found = values.grad.clone()
    values.grad = None
    both(x, image, values).backward()
    torch.testing.assert_close(found, values.grad)


def test_half_precision_stays_within_its_rounding() -> None:
    weight, index, values = torch.randn(24, 32), chosen((24, 32), 40), torch.randn(40, requires_grad=True)
    x = torch.randn(6, 32)
    exact = sparse_linear(x, weight, index, values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = sparse_linear(x, weight, index, values)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, rtol=0, atol=0.02 * float(exact.detach().abs().max()))
    y.float().sum().backward()
    assert values.grad is not None
    assert values.grad.dtype == torch.float32
