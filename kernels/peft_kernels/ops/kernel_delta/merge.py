"""The merge kernels: from two low-rank point sets to rows of the delta, and from the delta's gradient back to them.

A kernel object is made for one pass over one slice. `delta(rows)` gives a block of rows; with `keep=True` it also keeps
what `accumulate(rows, grad)` needs to take that block's gradient, which must follow before the next block.
"""

from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from .points import PointSets
from .spec import DeltaSlice

Gradients = tuple[Tensor, Tensor, Tensor | None]


class MergeKernel(Protocol):
    """One pass over the rows of one delta."""

    def delta(self, rows: slice, keep: bool = False) -> Float[Tensor, "rows in"]:
        """A new block of rows, which the caller may overwrite."""
        ...

    def accumulate(self, rows: slice, grad: Float[Tensor, "rows in"]) -> None:
        """Add the gradient of the block last given out with `keep`. May overwrite `grad`."""
        ...

    def gradients(self) -> Gradients:
        """Gradients of A, B and the scalars over all blocks."""
        ...


def merge_kernel(part: DeltaSlice, dtype: torch.dtype) -> MergeKernel:
    """The kernel of a slice, computing in `dtype`."""
    A, B = part.A.detach().to(dtype), part.B.detach().to(dtype)
    if part.spec.kernel == "piecewise_linear":
        return PiecewiseLinear(A, B, part.spec.coeff, part.spec.p)
    if part.spec.kernel == "linear":
        return Linear(A[0], B[0])
    assert part.scalars is not None
    scalars = part.scalars.detach().to(dtype)
    return (Sigmoid if part.spec.kernel == "sigmoid" else RadialBasis)(A[0], B[0], scalars)


class PiecewiseLinear:
    """delta = sum_p c_p || B_p[i] - A_p[j] ||, with |c_p| folded into the points and sign(c_p) into the sum."""

    def __init__(self, A: Tensor, B: Tensor, coeff: tuple[float, ...], p: float):
        self.coeff = coeff
        self.parts = [PointSets(a * abs(c), b * abs(c), p) for a, b, c in zip(A, B, coeff, strict=True)]

    def delta(self, rows: slice, keep: bool = False) -> Float[Tensor, "rows in"]:
        distances = [part.distance(rows) for part in self.parts]
        self.kept = distances if keep else None
        total = distances[0][0]
        if len(distances) > 1:  # the sign of the first part is put on last, so that it costs nothing when it is +
            alpha = _sign(self.coeff[0]) * _sign(self.coeff[1])
            total = torch.add(total, distances[1][0], alpha=alpha, out=None if keep else total)
        for c, (distance, _) in zip(self.coeff[2:], distances[2:], strict=True):
            total.add_(distance, alpha=_sign(self.coeff[0]) * _sign(c))
        if _sign(self.coeff[0]) < 0 or (keep and len(distances) == 1):
            total = total * _sign(self.coeff[0])
        return total

    def accumulate(self, rows: slice, grad: Float[Tensor, "rows in"]) -> None:
        assert self.kept is not None
        for part, (distance, close) in zip(self.parts, self.kept, strict=True):
            part.accumulate_distance(rows, grad, distance, close)
        self.kept = None

    def gradients(self) -> Gradients:
        pairs = [part.gradients() for part in self.parts]
        grads = ([c * pair[i] for c, pair in zip(self.coeff, pairs, strict=True)] for i in (0, 1))
        A, B = (torch.stack(grad) for grad in grads)
        return A, B, None


class Linear:
    """delta = B[i] . A[j]: a plain low-rank product under the gate."""

    def __init__(self, A: Tensor, B: Tensor):
        self.A, self.B = A, B
        self.grad_A, self.grad_B = torch.zeros_like(A.T), torch.zeros_like(B)

    def delta(self, rows: slice, keep: bool = False) -> Float[Tensor, "rows in"]:
        return self.B[rows] @ self.A.T

    def accumulate(self, rows: slice, grad: Float[Tensor, "rows in"]) -> None:
        self.grad_A.addmm_(self.B[rows].T, grad)
        self.grad_B[rows] = (self.A.T @ grad.T).T

    def gradients(self) -> Gradients:
        return self.grad_A.T[None], self.grad_B[None], None


class Sigmoid(Linear):
    """delta = alpha f + gamma with f = 1 / (1 + exp(-beta u)), u = B[i] . A[j]."""

    def __init__(self, A: Tensor, B: Tensor, scalars: Float[Tensor, "3"]):
        super().__init__(A, B)
        self.scalars, self.grad_scalars = scalars, torch.zeros_like(scalars)

    def delta(self, rows: slice, keep: bool = False) -> Float[Tensor, "rows in"]:
        alpha, beta, gamma = self.scalars
        u = super().delta(rows)
        f = torch.sigmoid(beta * u)
        self.kept = (u, f) if keep else None
        return f * alpha + gamma

    def accumulate(self, rows: slice, grad: Float[Tensor, "rows in"]) -> None:
        assert self.kept is not None
        alpha, beta, _ = self.scalars
        u, f = self.kept
        slope = grad * f * (1 - f) * alpha
        self.grad_scalars += torch.stack([(grad * f).sum(), (slope * u).sum(), grad.sum()])
        super().accumulate(rows, slope * beta)
        self.kept = None

    def gradients(self) -> Gradients:
        return *super().gradients()[:2], self.grad_scalars


class RadialBasis:
    """delta = alpha f + gamma with f = exp(-beta q), q = || B[i] - A[j] ||^2."""

    def __init__(self, A: Tensor, B: Tensor, scalars: Float[Tensor, "3"]):
        self.points = PointSets(A, B)
        self.scalars, self.grad_scalars = scalars, torch.zeros_like(scalars)

    def delta(self, rows: slice, keep: bool = False) -> Float[Tensor, "rows in"]:
        alpha, beta, gamma = self.scalars
        q, _ = self.points.squared(rows)
        f = torch.exp(-beta * q)
        self.kept = (q, f) if keep else None
        return f * alpha + gamma

    def accumulate(self, rows: slice, grad: Float[Tensor, "rows in"]) -> None:
        assert self.kept is not None
        alpha, beta, _ = self.scalars
        q, f = self.kept
        slope = grad * f * alpha
        self.grad_scalars += torch.stack([(grad * f).sum(), -(slope * q).sum(), grad.sum()])
        self.points.accumulate(rows, slope * (-2 * beta))  # d|b - a|^2 / db = 2 (b - a)
        self.kept = None

    def gradients(self) -> Gradients:
        A, B = self.points.gradients()
        return A[None], B[None], self.grad_scalars


def _sign(value: float) -> float:
    return -1.0 if value < 0 else 1.0
