"""The nuclear norm's subgradient by the Gram matrix, against the singular value decomposition; inverse roots."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from peft_kernels.ops import nuclear_subgradient
from peft_kernels.ops.inverse_root import EXACT_TO, extreme_eigenvalues, inverse_root, zolotarev
from peft_kernels.ops.nuclear import reference


def sparse(shape: tuple[int, int], density: float, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=generator, dtype=torch.float64)
    index = (torch.rand(matrix.numel(), generator=generator) < density).nonzero().squeeze(1).int()
    return matrix.flatten()[index.long()].to(dtype), index


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("density", [0.02, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(70, 90), (90, 70), (66, 66), (200, 65)], ids=str)
def test_agrees_with_the_decomposition(shape: tuple[int, int], density: float, dtype: torch.dtype) -> None:
    values, index = sparse(shape, density, dtype)
    found, norm = nuclear_subgradient(values, index, shape)
    expected, sigma = reference(values.double(), index, shape)
    tolerance = 1e-11 if dtype == torch.float64 else 2e-4
    assert found.dtype == norm.dtype == dtype
    # In float32 a singular value near the limit of what counts as 0 may fall on the other side of it.
    limit = 1.2e-7 * max(shape) * float(sigma[0])
    if dtype == torch.float64 or not ((sigma > limit / 10) & (sigma < 10 * limit)).any():
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)
    assert norm.item() == pytest.approx(sigma.sum().item(), rel=tolerance)


def test_is_the_gradient_of_the_norm() -> None:
    values, index = sparse((9, 7), 0.6, torch.float64)

    def norm(values: Tensor) -> Tensor:
        matrix = torch.zeros(63, dtype=values.dtype).index_copy(0, index.long(), values)
        return torch.linalg.svdvals(matrix.view(9, 7)).sum()

    found, value = nuclear_subgradient(values, index, (9, 7))
    assert value.item() == pytest.approx(norm(values).item(), rel=1e-12)
    step = 1e-6
    for i in range(len(values)):
        push = torch.zeros_like(values)
        push[i] = step
        slope = (norm(values + push) - norm(values - push)) / (2 * step)
        assert found[i].item() == pytest.approx(slope.item(), abs=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rank_deficient_matrices_have_the_gradient_of_least_norm(dtype: torch.dtype) -> None:
    u, v = torch.randn(70, dtype=torch.float64), torch.randn(80, dtype=torch.float64)
    index = torch.arange(70 * 80, dtype=torch.int32)
    one, norm_of_one = nuclear_subgradient(torch.outer(u, v).flatten().to(dtype), index, (70, 80))
    expected = torch.outer(u / u.norm(), v / v.norm()).flatten()
    torch.testing.assert_close(one.double(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)
    assert norm_of_one.item() == pytest.approx((u.norm() * v.norm()).item(), rel=1e-5)
    zero, norm = nuclear_subgradient(torch.zeros(70 * 80, dtype=dtype), index, (70, 80))
    assert not zero.any()
    assert norm == 0


@pytest.mark.parametrize("factor", [1e-22, 1e-15, 1e10, 1e30])
def test_a_factor_changes_the_norm_alone(factor: float) -> None:
    values, index = sparse((90, 300), 0.3)
    expected, sigma = reference(values.double(), index, (90, 300))
    found, norm = nuclear_subgradient(values * factor, index, (90, 300))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    assert norm.item() == pytest.approx(factor * sigma.sum().item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused_in_a_sentence(bad: float, dtype: torch.dtype) -> None:
    values, index = sparse((9, 7), 0.6, dtype)
    values[3] = bad
    with pytest.raises(ValueError, match="9 × 7 matrix needs finite values; found NaN or infinity among its"):
        nuclear_subgradient(values, index, (9, 7))


@pytest.mark.parametrize("poles", [1, 2, 3, 5])
@pytest.mark.parametrize("ratio", [0.9, 0.1, 5e-3])
def test_the_rational_function_is_as_near_as_it_says_and_none_is_nearer(ratio: float, poles: int) -> None:
    scale, weights, shifts, error = zolotarev(poles, ratio)
    x = np.geomspace(ratio, 1, 20001)
    apart = scale * (1 + (weights / (x[:, None] + shifts)).sum(1)) * np.sqrt(x) - 1
    assert np.abs(apart).max() == pytest.approx(error, rel=1e-2, abs=1e-14)
    if error > 1e-12:  # the mark of the best one: the error is as large at 2 poles + 2 places, with turning signs
        turns = np.sign(apart[np.abs(apart) > 0.99 * error])
        assert (np.diff(turns) != 0).sum() == 2 * poles + 1


def spread(side: int, smallest: float, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A matrix with eigenvalues from ``smallest`` to 3 and its inverse root."""
    Q = torch.linalg.qr(torch.randn(side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    values = 3 * torch.linspace(smallest / 3, 1, side, dtype=torch.float64)
    return ((Q * values) @ Q.T).to(dtype), (Q * values.rsqrt()) @ Q.T


@pytest.mark.parametrize("smallest", [2.9, 1.0, 0.3, 0.03])
@pytest.mark.parametrize("side", [1, 2, 5, 66, 300])
def test_inverse_root_of_a_well_conditioned_matrix(side: int, smallest: float) -> None:
    gram, expected = spread(side, smallest)
    root = inverse_root(gram)
    assert root is not None
    assert ((root - expected).norm() / expected.norm()).item() < 2 * EXACT_TO
    torch.testing.assert_close(root, root.T, rtol=0, atol=1e-5 * float(root.abs().amax()))


def test_extreme_eigenvalues_are_found_where_they_stand_apart() -> None:
    gram, _ = spread(300, 1.0)
    low, high = extreme_eigenvalues(gram)
    assert 1.0 <= low < 1.1
    assert 2.9 < high <= 3.0001
    gram, _ = spread(300, 1e-9)
    assert extreme_eigenvalues(gram)[0] < 0.03


@pytest.mark.parametrize("kind", ["ill-conditioned", "one value missing", "zeros", "identity"])
def test_matrices_that_poles_are_too_few_for_are_left_to_others(kind: str) -> None:
    gram, _ = spread(300, 1e-4 if kind == "ill-conditioned" else 1.0)
    if kind == "one value missing":  # as an empty row leaves it
        gram[7], gram[:, 7] = 0, 0
    if kind in ("zeros", "identity"):
        gram = torch.zeros(300, 300) if kind == "zeros" else torch.eye(300)
    root = inverse_root(gram)
    assert root is None if kind != "identity" else root is None or torch.allclose(root, gram, atol=1e-5)


def test_a_root_that_is_none_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    gram, _ = spread(300, 0.03)
    monkeypatch.setattr("peft_kernels.ops.inverse_root.extreme_eigenvalues", lambda _: (1.0, 3.0))
    assert inverse_root(gram) is None
