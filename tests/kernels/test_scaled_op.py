"""The linear with a trained factor: value and gradient of its formula, and what it keeps."""

import pytest
import torch
from torch import Tensor

from peft_kernels.ops import scaled_linear
from peft_kernels.ops.scaled import scaled_linear_reference
from tests.kernels.delta_cases import assert_same
from tests.kernels.test_kernel_delta_memory import kept_shapes


def leaf(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("keep_input", [False, True])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 0, 7), (2, 2, 2, 7)])
def test_matches_its_formula(shape, with_bias, keep_input):
    x, weight, factor = leaf(*shape), torch.randn(5, 7, dtype=torch.float64), leaf(5)
    bias = leaf(5) if with_bias else None
    inputs = [t for t in (x, bias, factor) if t is not None]
    expected = scaled_linear_reference(x, weight, bias, factor)
    assert_same(scaled_linear(x, weight, bias, factor, keep_input), expected, inputs, (1e-12, 1e-12))


@pytest.mark.parametrize("keep_input", [False, True])
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-30, -1e-12])
def test_a_factor_at_zero_has_its_gradient(value, keep_input):
    x, weight, bias, factor = leaf(3, 7), torch.randn(5, 7, dtype=torch.float64), leaf(5), leaf(5)
    with torch.no_grad():
        factor[2] = value
    expected = scaled_linear_reference(x, weight, bias, factor)
    assert_same(scaled_linear(x, weight, bias, factor, keep_input), expected, [x, bias, factor], (1e-12, 1e-12))


def test_factors_of_one_leave_the_bits_of_the_stock_operator():
    x, weight, bias = leaf(9, 7, dtype=torch.float32), torch.randn(5, 7), torch.randn(5)
    assert torch.equal(scaled_linear(x, weight, bias, torch.ones(5)), torch.nn.functional.linear(x, weight, bias))


@pytest.mark.parametrize("keep_input", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cast", [True, False])
def test_half_precision_keeps_small_steps_of_the_factor(dtype, keep_input, cast):
    kind = torch.float32 if cast else dtype
    x, weight, factor = leaf(400, 32, dtype=kind), torch.randn(5, 32, dtype=kind), torch.full((5,), 1.0002)
    factor.requires_grad_()
    with torch.autocast("cpu", dtype=dtype, enabled=cast):
        y = scaled_linear(x, weight, None, factor, keep_input)
    assert y.dtype == dtype
    y.float().square().sum().backward()
    plain = (x.detach().to(dtype).float() @ weight.to(dtype).float().T).requires_grad_()
    expected = 2 * factor.detach() * plain.square().sum(0)
    assert factor.grad is not None
    assert factor.grad.dtype == torch.float32
    torch.testing.assert_close(factor.grad, expected, rtol=0.01, atol=0)
    moved = (y.float() / plain).median(0).values  # half precision itself cannot tell 1.0002 from 1
    assert (moved - 1.0002).abs().max() < torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("way", ["as it is", "compiled"])
@pytest.mark.parametrize(("keep_input", "kept"), [(False, [(3, 5)]), (True, [(3, 16), (5,)])])
def test_one_tensor_is_kept(way, keep_input, kept):
    weight = torch.randn(5, 16)

    def scaled(x: Tensor, bias: Tensor, factor: Tensor) -> Tensor:
        return scaled_linear(x, weight, bias, factor, keep_input).sum()

    run = torch.compile(scaled, backend="aot_eager", fullgraph=True) if way == "compiled" else scaled
    inputs = [leaf(*shape, dtype=torch.float32) for shape in ((3, 16), (5,), (5,))]
    y, shapes = kept_shapes(lambda: run(*inputs))
    assert sorted(shapes) == sorted([*kept, (5,), (5, 16)])
    y.backward()
    assert all(t.grad is not None for t in inputs)


def test_the_kept_output_is_what_a_gate_keeps():
    x, weight, factor, gate = leaf(3, 7), torch.randn(5, 7, dtype=torch.float64), leaf(5), leaf(5)
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = scaled_linear(x, weight, None, factor)
        (gate * y).sum()
    large = {tensor.data_ptr() for tensor in saved if tensor.shape == (3, 5)}
    assert large == {y.data_ptr()}
