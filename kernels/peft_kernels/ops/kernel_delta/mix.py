"""SNELLA's kernel, delta = M + alpha F + beta with F the softmax of M / gamma over the out axis, by blocks of rows.

The softmax couples the rows of a column. What it needs of a column is two numbers, the largest M / gamma and the sum
of the exponentials, found by a pass over M before the first block; and what its gradient needs is one more,

    dL/dM = H (1 + alpha F / gamma) - alpha F C / gamma,   C_j = sum_i H_ij F_ij,

so that the last term, which has to wait for C, is added by a pass over M after the last block. M costs a thin product.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .blocks import block_rows
from .spec import temperature

if TYPE_CHECKING:
    from .merge import Gradients, PiecewiseLinear


class Mix:
    """One pass over the rows of a delta of kernel `mix`; `distances` gives M.

    Bytes beside M's: some blocks, and 6 numbers a column. Sums over all entries are taken in float64.
    """

    def __init__(self, distances: PiecewiseLinear, scalars: Float[Tensor, "3"], rows: int, columns: int):
        self.distances, self.rows = distances, rows
        self.alpha, gamma, self.beta = scalars.unbind()
        self.gamma = temperature(gamma)
        self.room = self.e = self.f = scalars.new_empty(0, columns)
        self.peak, total = scalars.new_full((columns,), -torch.inf), scalars.new_zeros(columns)
        for _, M in self._blocks():
            M.div_(self.gamma)
            higher = torch.maximum(self.peak, M.amax(0))
            total = total * torch.exp(self.peak - higher) + M.sub_(higher).exp_().sum(0)
            self.peak = higher
        self.inverse = total.reciprocal()
        self.sum_h, self.sum_hf, self.sum_hfe = scalars.new_zeros(3, columns, dtype=torch.float64).unbind()

    def _blocks(self) -> Iterator[tuple[slice, Float[Tensor, "rows in"]]]:
        """M of all rows, in a buffer that the next block overwrites."""
        size = block_rows(self.room.shape[1], self.room.is_cpu)
        for start in range(0, self.rows, size):
            rows = slice(start, min(start + size, self.rows))
            self.room = self._like(self.room, rows)
            self.distances.delta_(rows, self.room)
            yield rows, self.room

    def _softmax(self, rows: slice, M: Float[Tensor, "rows in"]) -> None:
        """Keep e = M / gamma - max and F = exp(e) / sum of a block."""
        self.e, self.f = self._like(self.e, rows), self._like(self.f, rows)
        torch.div(M, self.gamma, out=self.e).sub_(self.peak)
        torch.exp(self.e, out=self.f).mul_(self.inverse)

    @staticmethod
    def _like(buffer: Tensor, rows: slice) -> Tensor:
        number = rows.stop - rows.start
        return buffer if len(buffer) == number else buffer.new_empty(number, buffer.shape[1])

    def delta_(self, rows: slice, out: Float[Tensor, "rows in"]) -> None:
        self.distances.delta_(rows, out)
        self._softmax(rows, out)
        out.addcmul_(self.f, self.alpha).add_(self.beta)

    def at(self, i: Int[Tensor, "n"], j: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        M = self.distances.at(i, j)
        return M + self.alpha * torch.exp(M / self.gamma - self.peak[j]) * self.inverse[j] + self.beta

    def accumulate(self, rows: slice, grad: Float[Tensor, "rows in"]) -> None:
        hf = grad * self.f
        self.sum_h += grad.sum(0)
        self.sum_hf += hf.sum(0)
        self.sum_hfe += self.e.mul_(hf).sum(0)
        self.distances.accumulate(rows, hf.mul_(self.alpha / self.gamma).add_(grad))

    def gradients(self) -> Gradients:
        ratio = self.alpha / self.gamma
        waited = (-ratio * self.sum_hf).to(self.peak.dtype)
        sum_waited = torch.zeros_like(self.sum_hf)
        for rows, M in self._blocks():
            self._softmax(rows, M)
            weights = self.f.mul_(waited)
            sum_waited += self.e.mul_(weights).sum(0)
            self.distances.accumulate(rows, weights)
        A, B, _ = self.distances.gradients()
        # sum_i U_ij = 0, so that M / gamma may stand less its maximum in sum(U M).
        gamma = -(ratio * self.sum_hfe + sum_waited).sum()
        return A, B, torch.stack([self.sum_hf.sum(), gamma, self.sum_h.sum()]).to(self.peak.dtype)
