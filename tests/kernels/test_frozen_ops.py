"""Frozen linear and convolution give the stock operators' values and gradients, and keep nothing of their input."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from peft_kernels.ops import frozen_conv, frozen_linear
from tests.kernels.delta_cases import assert_same
from tests.kernels.test_kernel_delta_memory import kept_shapes

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
GEOMETRIES = [(1, 0, 1, 1), (2, 1, 1, 2), (1, 2, 2, 1), (1, 1, 1, 4), (2, 0, 1, 4)]


def leaf(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7), (2, 0, 7), (2, 2, 2, 7)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_matches_the_stock_operator(shape, with_bias):
    x, weight, bias = leaf(*shape), torch.randn(5, 7, dtype=torch.float64), leaf(5) if with_bias else None
    inputs = [t for t in (x, bias) if t is not None]
    assert_same(frozen_linear(x, weight, bias), F.linear(x, weight, bias), inputs, (1e-12, 1e-12))


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), GEOMETRIES)
def test_convolution_matches_the_stock_operator(dimensions, stride, padding, dilation, groups):
    x, bias = leaf(2, 4, *(8, 7, 6)[:dimensions]), leaf(8)
    weight = torch.randn(8, 4 // groups, *(3,) * dimensions, dtype=torch.float64)
    settings = stride, padding, dilation, groups
    expected = CONVOLUTIONS[dimensions](x, weight, bias, *settings)
    assert_same(frozen_conv(x, weight, bias, *settings), expected, [x, bias], (1e-12, 1e-12))


def test_channels_last_and_strided_inputs_match():
    x, weight = leaf(2, 4, 8, 8, dtype=torch.float32), torch.randn(6, 4, 3, 3)
    lasting = x.to(memory_format=torch.channels_last)
    assert_same(frozen_conv(lasting, weight), F.conv2d(lasting, weight), [x], (1e-5, 1e-5))
    rows = leaf(4, 7, 3, dtype=torch.float32)
    turned, matrix = rows.transpose(1, 2), torch.randn(5, 7)
    assert_same(frozen_linear(turned, matrix), F.linear(turned, matrix), [rows], (1e-5, 1e-5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_what_it_gives_the_stock_operators(dtype):
    x, weight, bias = leaf(3, 7, dtype=torch.float32), torch.randn(5, 7), leaf(5, dtype=torch.float32)
    image, kernel = leaf(2, 4, 8, 8, dtype=torch.float32), torch.randn(5, 4, 3, 3)
    with torch.autocast("cpu", dtype=dtype):
        found = frozen_linear(x, weight, bias), frozen_conv(image, kernel, bias)
        expected = F.linear(x, weight, bias), F.conv2d(image, kernel, bias)
    tolerance = 4 * torch.finfo(dtype).eps
    assert_same(found[0], expected[0], [x, bias], (tolerance, tolerance))
    assert_same(found[1], expected[1], [image, bias], (tolerance, tolerance))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_tensors_match_the_stock_operators(dtype):
    x, weight, bias = leaf(3, 7, dtype=dtype), torch.randn(5, 7, dtype=dtype), leaf(5, dtype=dtype)
    tolerance = 4 * torch.finfo(dtype).eps
    assert_same(frozen_linear(x, weight, bias), F.linear(x, weight, bias), [x, bias], (tolerance, tolerance))


@pytest.mark.parametrize("way", ["as it is", "compiled"])
@pytest.mark.parametrize("cast", [False, True])
def test_nothing_but_the_weight_is_kept(way, cast):
    weight, kernel = torch.randn(5, 16), torch.randn(5, 4, 3, 3)

    def both(x: Tensor, image: Tensor, bias: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast):
            return frozen_linear(x, weight, bias).sum() + frozen_conv(image, kernel, bias).sum()

    run = torch.compile(both, backend="aot_eager", fullgraph=True) if way == "compiled" else both
    inputs = leaf(3, 16, dtype=torch.float32), leaf(2, 4, 8, 8, dtype=torch.float32), leaf(5, dtype=torch.float32)
    y, shapes = kept_shapes(lambda: run(*inputs))
    assert sorted(shapes) == [(5, 4, 3, 3), (5, 16)]
    y.backward()
    assert all(t.grad is not None for t in inputs)


def test_a_trained_weight_gets_its_gradient():
    x, weight, kernel, image = leaf(3, 7), leaf(5, 7), leaf(5, 4, 3, 3), leaf(2, 4, 8, 8)
    assert_same(frozen_linear(x, weight), F.linear(x, weight), [x, weight], (1e-12, 1e-12))
    assert_same(frozen_conv(image, kernel), F.conv2d(image, kernel), [image, kernel], (1e-12, 1e-12))
