"""The merge kernels: from two low-rank point sets to rows of the delta, and from the delta's gradient back to them.

A kernel object is made for one pass over one slice. `delta_(rows, out)` writes a block of rows; `accumulate(rows,
grad)` takes in the gradient of the block written last, whose intermediate values the object still holds.
"""

from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .mix import Mix
from .points import PointSets
from .spec import DeltaSlice

Gradients = tuple[Tensor, Tensor, Tensor | None]


class MergeKernel(Protocol):
    """One pass over the rows of one delta."""

    def delta_(self, rows: slice, out: Float[Tensor, "rows in"]) -> None:
        """Write a block of rows."""
        ...

    def at(self, i: Int[Tensor, "n"], j: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        """Single entries, up to rounding."""
        ...

    def accumulate(self, rows: slice, grad: Float[Tensor, "rows in"]) -> None:
        """Add the gradient of the block written last."""
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
    if part.spec.kernel == "mix":
        return Mix(PiecewiseLinear(A, B, part.spec.coeff, part.spec.p), scalars, B.shape[1], A.shape[1])
    return Sigmoid(A[0], B[0], scalars) if part.spec.kernel == "sigmoid" else RadialBasis(A, B, scalars)


class PiecewiseLinear:
    """delta = sum_p c_p || B_p[i] - A_p[j] ||, with |c_p| folded into the points and sign(c_p) into the sum."""

    def __init__(self, A: Tensor, B: Tensor, coeff: tuple[float, ...], p: float):
        self.signs = [-1.0 if c < 0 else 1.0 for c in coeff]
        self.coeff = A.new_tensor(coeff)[:, None, None]
        self.points = PointSets(A * self.coeff.abs(), B * self.coeff.abs(), p)
        self.distances = A.new_empty(0)

    def delta_(self, rows: slice, out: Float[Tensor, "rows in"]) -> None:
        if self.distances.shape[1:] != out.shape:
            self.distances = out.new_empty(len(self.signs), *out.shape)
        self.points.distance_(rows, self.distances)
        (total, *rest), (sign, *signs) = self.distances.unbind(), self.signs
        for distance, s in zip(rest, signs, strict=True):  # the first sign comes last: it is + as a rule
            total = torch.add(total, distance, alpha=s * sign, out=out)
        if sign < 0 or not rest:
            torch.mul(total, sign, out=out)

    def at(self, i: Int[Tensor, "n"], j: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        return sum((d * s for d, s in zip(self.points.pairs(i, j), self.signs, strict=True)), i.new_zeros(()))

    def accumulate(self, rows: slice, grad: Float[Tensor, "rows in"]) -> None:
        self.points.accumulate_distance(rows, grad, self.distances)

    def gradients(self) -> Gradients:
        A, B = self.points.gradients()
        return A * self.coeff, B * self.coeff, None


class Linear:
    """delta = B[i] . A[j]: a plain low-rank product under the gate."""

    def __init__(self, A: Tensor, B: Tensor):
        self.A, self.B = A, B
        self.grad_A, self.grad_B = torch.zeros_like(A.T), torch.zeros_like(B)

    def delta_(self, rows: slice, out: Float[Tensor, "rows in"]) -> None:
        torch.mm(self.B[rows], self.A.T, out=out)

    def at(self, i: Int[Tensor, "n"], j: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        return (self.B[i] * self.A[j]).sum(1)

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

    def delta_(self, rows: slice, out: Float[Tensor, "rows in"]) -> None:
        alpha, beta, gamma = self.scalars
        self.u = torch.empty_like(out)
        super().delta_(rows, self.u)
        self.f = torch.sigmoid(beta * self.u)
        torch.mul(self.f, alpha, out=out).add_(gamma)

    def at(self, i: Int[Tensor, "n"], j: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        alpha, beta, gamma = self.scalars
        return alpha * torch.sigmoid(beta * super().at(i, j)) + gamma

    def accumulate(self, rows: slice, grad: Float[Tensor, "rows in"]) -> None:
        alpha, beta, _ = self.scalars
        slope = grad * self.f * (1 - self.f) * alpha
        self.grad_scalars += torch.stack([(grad * self.f).sum(), (slope * self.u).sum(), grad.sum()])
        super().accumulate(rows, slope * beta)

    def gradients(self) -> Gradients:
        return *super().gradients()[:2], self.grad_scalars


class RadialBasis:
    """delta = alpha f + gamma with f = exp(-beta q), q = || B[i] - A[j] ||^2."""

    def __init__(self, A: Tensor, B: Tensor, scalars: Float[Tensor, "3"]):
        self.points = PointSets(A, B)
        self.scalars, self.grad_scalars = scalars, torch.zeros_like(scalars)

    def delta_(self, rows: slice, out: Float[Tensor, "rows in"]) -> None:
        alpha, beta, gamma = self.scalars
        self.q = torch.empty_like(out)
        self.points.squared_(rows, self.q[None])
        self.f = torch.exp(-beta * self.q)
        torch.mul(self.f, alpha, out=out).add_(gamma)

    def at(self, i: Int[Tensor, "n"], j: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        alpha, beta, gamma = self.scalars
        return alpha * torch.exp(-beta * self.points.pairs(i, j)[0].square()) + gamma

    def accumulate(self, rows: slice, grad: Float[Tensor, "rows in"]) -> None:
        alpha, beta, _ = self.scalars
        slope = grad * self.f * alpha
        self.grad_scalars += torch.stack([(grad * self.f).sum(), -(slope * self.q).sum(), grad.sum()])
        self.points.accumulate(rows, (slope * (-2 * beta))[None])  # d|b - a|^2 / db = 2 (b - a)

    def gradients(self) -> Gradients:
        return *self.points.gradients(), self.grad_scalars
