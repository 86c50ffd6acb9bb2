"""The mixed kernel: softmax over the outputs, gradients, and a temperature that may come near 0."""

from typing import Any

import pytest
import torch

from peft_kernels.ops import DeltaSlice, DeltaSpec, delta_sparse, gated_linear
from peft_kernels.ops.kernel_delta import reference
from tests.kernels.delta_cases import assert_close, assert_same, random_slice, tensors_of


def mixed(rows: int, columns: int, dtype: torch.dtype = torch.float64, **constants: Any) -> DeltaSlice:
    return random_slice(rows, columns, 3, dtype, kernel="mix", **constants)


def test_the_softmax_of_every_input_feature_sums_to_one_over_the_outputs():
    part = mixed(13, 7, gate="none")
    assert part.scalars is not None
    alpha, _, beta = part.scalars.tolist()
    M = reference.merge(part.A, part.B, DeltaSpec(coeff=part.spec.coeff))
    F = (delta_sparse([part], 13, 7) - M - beta) / alpha
    assert_close(F.sum(0), torch.ones(7, dtype=torch.float64), 1e-12)
    assert (F.sum(1) - 7 / 13).abs().max() > 1e-3


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("gate", ["none", "magnitude", "soft", "hard"])
def test_any_cut_into_blocks_gives_what_the_formulas_give(gate, chunk):
    slices = [mixed(23, 17, gate=gate, sparsity=0.4), mixed(11, 17, gate=gate, sparsity=0.8, start=9, scale=-0.5)]
    x = torch.randn(5, 17, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(25, 17, dtype=torch.float64)
    found = gated_linear(x, weight, None, slices, chunk_rows=chunk)
    assert_same(found, reference.gated_linear(x, weight, None, slices), [x, *tensors_of(slices)], (1e-9, 1e-9))


def test_a_delta_of_many_blocks_gives_what_the_formulas_give():
    part = mixed(700, 640, torch.float32, gate="magnitude", sparsity=0.5, spread=0.02)
    assert_same(
        delta_sparse([part], 700, 640), reference.delta_weight([part], 700, 640), tensors_of([part]), (2e-4, 2e-3)
    )


@pytest.mark.parametrize("gate", ["none", "hard"])
def test_gradients_are_those_of_finite_differences(gate):
    part = mixed(5, 4, gate=gate, sparsity=0.3)

    def delta(*points):
        return delta_sparse([DeltaSlice(points[0], points[1], part.spec, points[2])], 5, 4)

    assert torch.autograd.gradcheck(delta, tensors_of([part]))


def test_the_gate_is_a_constant_of_the_gradient():
    part = mixed(14, 11, gate="magnitude", sparsity=0.3)
    inputs, probe = tensors_of([part]), torch.randn(14, 11, dtype=torch.float64)
    delta = reference.merge(part.A, part.B, part.spec, part.scalars)
    gate = reference.gate_of(delta.detach(), part.spec)[0]
    found = torch.autograd.grad(delta_sparse([part], 14, 11), inputs, probe)
    once = torch.autograd.grad(delta * gate, inputs, probe)
    for gradient, truth in zip(found, once, strict=True):
        assert_close(gradient, truth, 1e-9)


def test_the_gate_stays_at_sparsity_zero():
    part = mixed(30, 20, gate="magnitude")
    delta = reference.merge(part.A, part.B, part.spec, part.scalars)
    expected = delta * delta.abs()
    expected.flatten()[delta.abs().argmin()] = 0
    S = delta_sparse([part], 30, 20)
    assert_close(S, expected, 1e-12)
    assert torch.count_nonzero(S) == 599


@pytest.mark.parametrize("gamma", [1e-4, -1e-4, 1e-9, -1e-9, 0.0, -2.0])
def test_a_temperature_near_zero_counts_as_a_ten_thousandth(gamma):
    part = mixed(40, 30, torch.float32, gate="none")
    scalars = torch.tensor([1.0, gamma, 0.0], requires_grad=True)
    nearest = torch.tensor([1.0, gamma if abs(gamma) >= 1e-4 else -1e-4 if gamma < 0 else 1e-4, 0.0])
    S = delta_sparse([part._replace(scalars=scalars)], 40, 30)
    assert_close(S, delta_sparse([part._replace(scalars=nearest)], 40, 30), 0.0)
    S.square().sum().backward()
    assert scalars.grad is not None
    assert scalars.grad.isfinite().all()
    assert part.A.grad is not None
    assert part.A.grad.isfinite().all()


def test_scalars_of_a_large_delta_are_summed_in_double_precision():
    part = mixed(900, 800, torch.float32, gate="magnitude", sparsity=0.5, spread=0.02)
    start = torch.tensor([1.0, 1.0, 0.0], requires_grad=True)
    part = part._replace(scalars=start)
    exact = part._replace(**{n: getattr(part, n).detach().double().requires_grad_() for n in ("A", "B", "scalars")})
    probe = torch.randn(900, 800)
    assert part.scalars is not None
    assert exact.scalars is not None
    (found,) = torch.autograd.grad(delta_sparse([part], 900, 800), part.scalars, probe)
    (truth,) = torch.autograd.grad(delta_sparse([exact], 900, 800), exact.scalars, probe.double())
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=0.0)
