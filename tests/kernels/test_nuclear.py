"""The nuclear norm's subgradient by the Gram matrix, against the singular value decomposition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from peft_kernels.ops import nuclear_subgradient
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
    found, sigma = nuclear_subgradient(values, index, shape)
    expected, expected_sigma = reference(values.double(), index, shape)
    tolerance = 1e-11 if dtype == torch.float64 else 2e-4
    assert found.dtype == sigma.dtype == dtype
    # In float32 a singular value near the limit of what counts as 0 may fall on the other side of it.
    limit = 1.2e-7 * max(shape) * float(expected_sigma[0])
    if dtype == torch.float64 or not ((expected_sigma > limit / 10) & (expected_sigma < 10 * limit)).any():
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(sigma.double(), expected_sigma, rtol=0, atol=tolerance * float(expected_sigma[0]))


def test_is_the_gradient_of_the_norm() -> None:
    values, index = sparse((9, 7), 0.6, torch.float64)

    def norm(values: Tensor) -> Tensor:
        matrix = torch.zeros(63, dtype=values.dtype).index_copy(0, index.long(), values)
        return torch.linalg.svdvals(matrix.view(9, 7)).sum()

    found, sigma = nuclear_subgradient(values, index, (9, 7))
    assert sigma.sum().item() == pytest.approx(norm(values).item(), rel=1e-12)
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
    one, sigma = nuclear_subgradient(torch.outer(u, v).flatten().to(dtype), index, (70, 80))
    expected = torch.outer(u / u.norm(), v / v.norm()).flatten()
    torch.testing.assert_close(one.double(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)
    assert sigma[0].item() == pytest.approx((u.norm() * v.norm()).item(), rel=1e-5)
    zero, sigma = nuclear_subgradient(torch.zeros(70 * 80, dtype=dtype), index, (70, 80))
    assert not zero.any()
    assert not sigma.any()
