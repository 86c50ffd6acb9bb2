"""The perceptron on pixels and tokens: value and gradient of its formula, its memory formats, and what it keeps."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from peft_kernels.ops import pointwise_mlp
from peft_kernels.ops.pointwise_mlp import pointwise_mlp_reference
from tests.kernels.delta_cases import assert_same
from tests.kernels.test_kernel_delta_memory import kept_shapes


def leaf(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def parameters(channels: int, hidden: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [leaf(*s, dtype=dtype) for s in ((hidden, channels), (hidden,), (channels, hidden), (channels,))]


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((7,), -1),
        ((3, 7), -1),
        ((2, 5, 7), -1),
        ((2, 0, 7), -1),
        ((2, 7, 5), 1),
        ((3, 7, 4, 5), 1),
        ((1, 7, 2, 3, 4), 1),
    ],
)
def test_matches_its_formula(shape, axis):
    x, given = leaf(*shape), parameters(7, 4)
    expected = pointwise_mlp_reference(x, *given, axis=axis)
    assert_same(pointwise_mlp(x, *given, axis=axis), expected, [x, *given], (1e-12, 1e-12))


def test_an_input_without_gradient_leaves_those_of_the_parameters():
    x, given = torch.randn(3, 7, 4, 5, dtype=torch.float64), parameters(7, 4)
    expected = pointwise_mlp_reference(x, *given, axis=1)
    assert_same(pointwise_mlp(x, *given, axis=1), expected, given, (1e-12, 1e-12))


def test_channels_last_stay_last_and_slices_are_read_as_they_lie():
    whole, given = leaf(2, 11, 4, 5), parameters(7, 4)
    last = whole.to(memory_format=torch.channels_last)
    for x in (whole[:, 4:], last[:, 4:], last[:, 4:].clone(memory_format=torch.channels_last)):
        y = pointwise_mlp(x, *given, axis=1)
        assert y.is_contiguous(memory_format=torch.channels_last) == (x.stride(1) == 1)
        assert_same(y, pointwise_mlp_reference(x, *given, axis=1), [whole, *given], (1e-12, 1e-12))


def test_the_exact_gelu_is_not_the_one_by_tanh():
    x, given = 3 * leaf(2, 5, 7), parameters(7, 4)
    w1, b1, w2, b2 = given
    other = F.linear(F.gelu(F.linear(x, w1, b1), approximate="tanh"), w2, b2)
    assert (pointwise_mlp(x, *given) - other).abs().max() > 1e-6  # type: ignore[arg-type]


def test_gradients_agree_with_finite_differences():
    x, given = leaf(1, 3, 2, 2), parameters(3, 2)
    assert torch.autograd.gradcheck(lambda *inputs: pointwise_mlp(*inputs, 1), (x, *given))  # type: ignore[call-arg]


@pytest.mark.parametrize("way", ["as it is", "compiled"])
def test_the_input_and_one_tensor_of_the_hidden_width_are_kept(way):
    given = parameters(7, 4, torch.float32)

    def run(x: Tensor) -> Tensor:
        return pointwise_mlp(x, *given, axis=1).sum()

    called = torch.compile(run, backend="aot_eager", fullgraph=True) if way == "compiled" else run
    x = leaf(2, 7, 5, 6, dtype=torch.float32)
    y, shapes = kept_shapes(lambda: called(x))
    assert sorted(shapes) == [(2, 4, 5, 6), (2, 7, 5, 6), (4, 7), (7, 4)]
    y.backward()
    assert x.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_half_precision_with_gradients_in_the_parameters_own(dtype):
    x, given = leaf(3, 7, 4, 5, dtype=torch.float32), parameters(7, 4, torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        found, expected = pointwise_mlp(x, *given, axis=1), pointwise_mlp_reference(x, *given, axis=1)
    assert found.dtype == dtype
    tolerance = 8 * torch.finfo(dtype).eps
    assert_same(found, expected, [x, *given], (tolerance, 4 * tolerance))
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in given)
