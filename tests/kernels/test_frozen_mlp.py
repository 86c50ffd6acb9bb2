"""The frozen perceptron: value and gradient of its formula, and what it keeps."""

from typing import Any

import pytest
import torch
from torch import Tensor

from peft_kernels.ops import frozen_mlp
from peft_kernels.ops.frozen_mlp import ACTIVATIONS, frozen_mlp_reference
from tests.kernels.delta_cases import assert_same
from tests.kernels.test_kernel_delta_memory import kept_shapes

WIDTH, HIDDEN, OUT = 5, 8, 3


def leaf(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def parts(activation: str, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """W₁, b₁, γ₁, W₂, b₂, γ₂; the weights without gradient."""
    inner = 2 * HIDDEN if activation == "geglu" else HIDDEN
    weights = torch.randn(inner, WIDTH, dtype=dtype), torch.randn(OUT, HIDDEN, dtype=dtype)
    first, second = (leaf(inner, dtype=dtype), leaf(inner)), (leaf(OUT, dtype=dtype), leaf(OUT))
    return [weights[0], *first, weights[1], *second]


@pytest.mark.parametrize("absent", [(), (1,), (2,), (5,), (1, 2, 4, 5)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(WIDTH,), (2, 0, WIDTH), (2, 301, WIDTH)])
def test_matches_its_formula(shape, activation, absent):
    x = leaf(*shape)
    given: Any = [None if i in absent else tensor for i, tensor in enumerate(parts(activation))]
    inputs = [t for t in (x, *given) if t is not None and t.requires_grad]
    y = frozen_mlp(x, *given, activation=activation)
    assert_same(y, frozen_mlp_reference(x, *given, activation=activation), inputs, (1e-11, 1e-11))


@pytest.mark.parametrize("value", [0.0, -1e-30])
def test_factors_at_zero_have_their_gradients(value):
    x, given = leaf(4, WIDTH), parts("gelu")
    with torch.no_grad():
        given[2][1], given[5][1] = value, value
    inputs = [x, *(t for t in given if t.requires_grad)]
    assert_same(
        frozen_mlp(x, *given, activation="gelu"),
        frozen_mlp_reference(x, *given, activation="gelu"),
        inputs,
        (1e-12, 1e-12),
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_bits_are_those_of_stock_layers(activation):
    x, (w1, b1, _, w2, b2, _) = leaf(2, 301, WIDTH, dtype=torch.float32), parts(activation, torch.float32)
    expected = frozen_mlp_reference(x, w1, b1, None, w2, b2, None, activation)
    assert torch.equal(frozen_mlp(x, w1, b1, None, w2, b2, None, activation), expected)


@pytest.mark.parametrize(
    ("way", "trained", "activation"),
    [*(("as it is", t, a) for t in (True, False) for a in ACTIVATIONS), ("compiled", True, "geglu")],
)
def test_nothing_of_the_hidden_width_is_kept(way, trained, activation):
    w1, b1, f1, w2, b2, f2 = parts(activation, torch.float32)
    f2.requires_grad_(trained)

    def mlp(x: Tensor, b1: Tensor, f1: Tensor, b2: Tensor, f2: Tensor) -> Tensor:
        return frozen_mlp(x, w1, b1, f1, w2, b2, f2, activation).sum()

    run = torch.compile(mlp, backend="aot_eager", fullgraph=True) if way == "compiled" else mlp
    inputs = [leaf(7, 9, WIDTH, dtype=torch.float32), b1, f1, b2, f2]
    y, shapes = kept_shapes(lambda: run(*inputs))
    assert (7, 9, WIDTH) in shapes
    assert ((7, 9, OUT) in shapes) == trained
    assert all(shape[-1] not in (HIDDEN, 2 * HIDDEN) for shape in shapes if len(shape) > 2)
    y.backward()
    assert all(t.grad is not None for t in inputs if t.requires_grad)


@pytest.mark.parametrize("cast", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_matches_its_formula(dtype, cast):
    kind = torch.float32 if cast else dtype
    w1, b1, f1, w2, b2, f2 = parts("gelu_tanh", kind)
    f1, f2 = ((1 + 0.1 * f.detach().float()).requires_grad_() for f in (f1, f2))
    x = leaf(300, WIDTH, dtype=kind)
    trained = [x, b1, f1, b2, f2]
    with torch.autocast("cpu", dtype=dtype, enabled=cast):
        y = frozen_mlp(x, w1, b1, f1, w2, b2, f2, "gelu_tanh")
    assert y.dtype == dtype
    wide: Any = [t.float() for t in (x, w1, b1, f1, w2, b2, f2)]
    exact = frozen_mlp_reference(*wide, activation="gelu_tanh")
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.1)
    found = torch.autograd.grad(y.float().square().sum(), trained)
    expected = torch.autograd.grad(exact.square().sum(), trained)
    for tensor, one, other in zip(trained, found, expected, strict=True):
        assert one.dtype == tensor.dtype
        assert (one.float() - other.float()).norm() < 0.03 * other.float().norm()


def test_another_activation_is_refused():
    with pytest.raises(ValueError, match="gelu, gelu_tanh, geglu; found 'silu'"):
        frozen_mlp(leaf(2, WIDTH), *parts("gelu"), activation="silu")
