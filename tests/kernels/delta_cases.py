"""Random deltas, and comparisons of values and gradients, for the tests of the kernelised delta."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from peft_kernels.ops.kernel_delta import DISTANCE_KERNELS, KERNEL_SCALARS, DeltaSlice, DeltaSpec

TOLERANCE = {torch.float64: (1e-9, 1e-9), torch.float32: (2e-4, 2e-3)}  # of values, of gradients


def random_slice(
    rows: int, columns: int, d: int, dtype: torch.dtype = torch.float32, spread: float = 1.0, **constants: Any
) -> DeltaSlice:
    """A delta of random points, uniform in a cube of edge 2 * `spread`."""
    spec = DeltaSpec(**constants)
    parts = len(spec.coeff) if spec.kernel in DISTANCE_KERNELS else 1
    A, B = (((torch.rand(parts, n, d, dtype=dtype) * 2 - 1) * spread).requires_grad_() for n in (columns, rows))
    names = KERNEL_SCALARS[spec.kernel]
    scalars = (torch.rand(len(names), dtype=dtype) + 0.5).requires_grad_() if names else None
    return DeltaSlice(A, B, spec, scalars)


def tensors_of(slices: Sequence[DeltaSlice]) -> list[Tensor]:
    """All trainable tensors of some deltas."""
    return [t for s in slices for t in (s.A, s.B, s.scalars) if t is not None]


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compare within a share of the expected tensor's maximum."""
    assert found.shape == expected.shape
    assert found.isfinite().all()
    if expected.numel() == 0:
        return
    error, size = (found.double() - expected.double()).abs().max(), expected.double().abs().max()
    assert error <= tolerance * size.clamp_min(1e-300), f"{error} of {size}"


def assert_same(found: Tensor, expected: Tensor, inputs: Sequence[Tensor], tolerances: tuple[float, float]) -> None:
    """Compare two outputs, and their gradients for the same random gradient of the output."""
    assert found.dtype == expected.dtype
    assert_close(found, expected, tolerances[0])
    probe = torch.randn_like(expected)
    pairs = zip(
        torch.autograd.grad(found, inputs, probe), torch.autograd.grad(expected, inputs, probe), inputs, strict=True
    )
    for gradient, truth, tensor in pairs:
        assert gradient.dtype == tensor.dtype
        assert_close(gradient, truth, tolerances[1])
