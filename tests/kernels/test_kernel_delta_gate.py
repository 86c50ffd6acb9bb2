"""Who survives the gate of the kernelised delta, and what its gradient and its distances hold to."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_kernels.ops import DeltaSpec, delta_sparse
from peft_kernels.ops.kernel_delta import reference
from peft_kernels.ops.kernel_delta.threshold import kth_magnitude
from tests.kernels.delta_cases import assert_close, random_slice


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9, 0.99, 1.0])
def test_as_many_entries_survive_as_the_quantile_leaves(sparsity):
    part = random_slice(768, 768, 4, spread=0.018, gate="magnitude", sparsity=sparsity)
    expected = {0.0: 589823, 0.1: 530841, 0.5: 294912, 0.9: 58983, 0.99: 5899, 1.0: 0}[sparsity]
    assert torch.count_nonzero(delta_sparse([part], 768, 768)) == expected


def test_the_count_is_exact_above_two_to_the_24_entries():
    part = random_slice(4096, 4097, 1, torch.float64, sparsity=0.9)  # float32 would have ties
    entries = 4096 * 4097
    assert torch.count_nonzero(delta_sparse([part], 4096, 4097)) == entries - 1 - math.floor(0.9 * (entries - 1))


def test_both_passes_agree_on_who_survives():
    part = random_slice(300, 700, 4, spread=0.02, sparsity=0.7)
    S = delta_sparse([part], 300, 700)
    probe = torch.zeros(300, 700)
    dropped = (S == 0).nonzero()[:50]
    probe[dropped[:, 0], dropped[:, 1]] = 1.0
    A, B = torch.autograd.grad(S, [part.A, part.B], probe)
    assert torch.count_nonzero(A) == torch.count_nonzero(B) == 0


def test_auto_gate_is_open_at_sparsity_zero_and_only_there():
    part = random_slice(30, 20, 3, torch.float64)
    delta = reference.merge(part.A, part.B, part.spec)
    assert_close(delta_sparse([part], 30, 20), delta, 1e-12)
    almost = delta_sparse([part._replace(spec=DeltaSpec(sparsity=1e-9))], 30, 20)
    expected = delta * delta.abs()
    expected.flatten()[delta.abs().argmin()] = 0
    assert_close(almost, expected, 1e-12)


def test_the_gradient_takes_the_gate_for_a_constant():
    part = random_slice(14, 11, 3, torch.float64, sparsity=0.3)
    probe = torch.randn(14, 11, dtype=torch.float64)
    delta = reference.merge(part.A, part.B, part.spec)
    frozen_gate = reference.gate_of(delta.detach(), part.spec)[0]
    found = torch.autograd.grad(delta_sparse([part], 14, 11), part.A, probe)[0]
    once, twice = (
        torch.autograd.grad(s, part.A, probe, retain_graph=True)[0]
        for s in (delta * frozen_gate, delta * delta.abs() * (frozen_gate > 0))
    )
    assert_close(found, once, 1e-9)
    assert_close(2 * found, twice, 1e-9)  # what a gradient through the gate as well would be


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coincident_points_are_at_distance_zero_and_pass_no_gradient(p, dtype):
    part = random_slice(60, 50, 4, dtype, coeff=(0.1,), p=p)
    with torch.no_grad():
        part.B[0, 7] = part.A[0, 3]
    S = delta_sparse([part], 60, 50)
    assert S[7, 3] == 0
    probe = torch.zeros_like(S)
    probe[7, 3] = 1.0
    for gradient in torch.autograd.grad(S, [part.A, part.B], probe):
        assert torch.count_nonzero(gradient) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_close_points_far_from_the_origin_keep_their_distance(dtype):
    part = random_slice(40, 40, 3, dtype, coeff=(1.0,))
    with torch.no_grad():
        for points in (part.A, part.B):
            points += 100.0
        part.B[0, :20] = part.A[0, :20] + 1e-3
    expected = reference.merge(part.A.double(), part.B.double(), part.spec)
    assert_close(delta_sparse([part], 40, 40), expected, 2e-6 if dtype == torch.float32 else 1e-12)


def test_moving_all_points_alike_changes_nothing_and_swapping_parts_the_sign():
    part = random_slice(25, 15, 3, torch.float64)
    S = delta_sparse([part], 25, 15)
    shift = torch.randn(2, 1, 3, dtype=torch.float64)
    assert_close(delta_sparse([part._replace(A=part.A + shift, B=part.B + shift)], 25, 15), S, 1e-9)
    assert_close(delta_sparse([part._replace(A=part.A.flip(0), B=part.B.flip(0))], 25, 15), -S, 1e-9)


def test_a_delta_of_rank_eight_factors_has_a_higher_rank():
    part = random_slice(64, 64, 4, torch.float64, spread=1 / 16)
    assert torch.linalg.matrix_rank(delta_sparse([part], 64, 64)) > 8


def test_equal_magnitudes_all_fall():
    part = random_slice(8, 8, 2, coeff=(0.1,), sparsity=0.5)
    same = part._replace(A=torch.zeros(1, 8, 2), B=torch.ones(1, 8, 2))
    assert torch.count_nonzero(delta_sparse([same], 8, 8)) == 0


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.integers(1, 60000),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from(["normal", "few values", "heavy tail", "constant", "sorted", "zeros"]),
    st.floats(0, 1),
)
def test_the_kth_magnitude_is_exact(entries, dtype, kind, share):
    torch.manual_seed(0)
    values = torch.randn(entries, dtype=dtype)
    values = {
        "normal": values,
        "few values": values.round(),
        "heavy tail": values.pow(9),
        "constant": torch.full_like(values, -3.0),
        "sorted": values.sort().values,
        "zeros": values * (values > 1),
    }[kind]
    k = int(share * (entries - 1))
    assert kth_magnitude(values, k) == values.abs().sort().values[k]


def test_the_kth_magnitude_is_found_among_infinite_and_missing_values():
    values = torch.randn(40000)
    values[::3] = torch.inf
    assert kth_magnitude(values, 39000) == torch.inf
    values[1::3] = torch.nan
    assert kth_magnitude(values, 39999).isnan()


@pytest.mark.parametrize(
    ("gate", "sparsity", "entries", "index"),
    [
        ("magnitude", 0.29, 101, 29),  # 0.29 * 100 is 28.999... in floating point
        ("magnitude", 1.0, 101, 100),
        ("soft", 0.07, 100, 6),  # 0.07 * 100 is 7.000...1
        ("soft", 0.0, 100, None),
        ("none", 0.5, 100, None),
        ("magnitude", 0.5, 2**25 + 1, 2**24),
    ],
)
def test_positions_are_exact(gate, sparsity, entries, index):
    assert DeltaSpec(gate=gate, sparsity=sparsity).threshold_index(entries) == index
