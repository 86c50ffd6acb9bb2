"""Distances between sets of points, a block of rows at a time, and their gradients by thin matrix products.

Squared distances come from one product per block, |b|^2 + |a|^2 - 2 a.b = [1, b, |b|^2] . [|a|^2, -2a, 1], with the
common mean taken off first (distances do not change, cancellation shrinks). Pairs closer than this expansion can
resolve are computed again from differences, so that equal points are at distance 0 exactly.
"""

from importlib.util import find_spec

import torch
from jaxtyping import Float, Int
from torch import Tensor


class PointSets:
    """Pairs of point sets, `a` [parts, in, d] and `b` [parts, out, d], in blocks of rows of their distance matrices.

    Cost of a block of c rows, each part: 2 (d + 2) c in FLOPs for the distances, 4 (d + 1) c in for the gradient.
    """

    def __init__(self, a: Float[Tensor, "parts in d"], b: Float[Tensor, "parts out d"], p: float = 2.0):
        points, n = torch.cat([a, b], 1), a.shape[1]
        points -= points.mean(1, keepdim=True)
        self.a, self.b, self.p = points[:, :n], points[:, n:], p
        if p != 2.0:
            self.grad_a, self.grad_b = torch.zeros_like(a), torch.zeros_like(b)
            return
        norm = points.square().sum(2)
        factors = points.new_ones(len(a), a.shape[2] + 2, points.shape[1])
        factors[:, 1:-1] = points.mT
        self.left, self.right = factors[:, :, n:], factors[:, :, :n]
        self.left[:, -1], self.right[:, 0] = norm[:, n:], norm[:, :n]
        self.right[:, 1:-1] *= -2
        # Below this the expansion is off by more than 1e-3 (float32) or 3e-10 (float64) of the squared distance.
        eps = torch.finfo(a.dtype).eps
        closest = 2 * eps ** (0.6 if eps > 1e-8 else 0.4) * norm.max()
        # On other devices differences are taken always: no host sync, no TF32.
        self.resolved = closest.item() if a.is_cpu else torch.inf
        self.close = True  # whether the block written last may hold a distance of 0
        self.grad_a, self.grad_b = (norm.new_zeros(len(a), a.shape[2] + 1, x.shape[1]) for x in (a, b))

    def squared_(self, rows: slice, out: Float[Tensor, "parts rows in"]) -> None:
        """Write the squared Euclidean distances of some rows."""
        if self.resolved == torch.inf:
            self._differences_(rows, out)
            out.square_()
            return
        torch.bmm(self.left[:, :, rows].mT, self.right, out=out)
        self.close = out.amin().item() < self.resolved
        if self.close:
            part, i, j = (out < self.resolved).nonzero(as_tuple=True)
            out[part, i, j] = (self.b[:, rows][part, i] - self.a[part, j]).square().sum(1)

    def distance_(self, rows: slice, out: Float[Tensor, "parts rows in"]) -> None:
        """Write the distances of order p of some rows."""
        if self.p == 2.0:
            self.squared_(rows, out)
            out.sqrt_()
        else:
            self._differences_(rows, out)

    def pairs(self, i: Int[Tensor, "n"], j: Int[Tensor, "n"]) -> Float[Tensor, "parts n"]:
        """Distances of order p of single pairs."""
        apart = self.b.index_select(1, i) - self.a.index_select(1, j)
        return apart.square().sum(2).sqrt() if self.p == 2.0 else torch.linalg.vector_norm(apart, self.p, dim=2)

    def _differences_(self, rows: slice, out: Float[Tensor, "parts rows in"]) -> None:
        if self.p == 2.0 and out.is_cuda and find_spec("triton"):
            from .distance_triton import distances_

            distances_(self.a, self.b[:, rows], out)
        else:
            mode = "donot_use_mm_for_euclid_dist"
            out.copy_(torch.cdist(self.b[:, rows], self.a, p=self.p, compute_mode=mode))

    def accumulate_distance(
        self, rows: slice, grad: Float[Tensor, "rows in"], distance: Float[Tensor, "parts rows in"]
    ) -> None:
        """Add the gradient that reaches the distances of some rows; a distance of 0 passes none. Spoils `distance`."""
        if self.p == 2.0:
            if self.close:
                distance.masked_fill_(distance == 0, torch.inf)
            self.accumulate(rows, torch.div(grad, distance, out=distance))
            return
        b, a, both = self.b[:, rows].contiguous(), self.a, grad.expand_as(distance).contiguous()
        self.grad_b[:, rows] += torch.ops.aten._cdist_backward(both, b, a, self.p, distance)
        back = both.mT.contiguous(), a, b, self.p, distance.mT.contiguous()
        self.grad_a += torch.ops.aten._cdist_backward(*back)

    def accumulate(self, rows: slice, weights: Float[Tensor, "parts rows in"]) -> None:
        """Add sum_j Q_ij (b_i - a_j) to the gradient of b_i and the opposite to that of a_j (p = 2)."""
        self.grad_a.baddbmm_(self.left[:, :-1, rows], weights)
        self.grad_b[:, :, rows] += torch.bmm(self.right[:, 1:], weights.mT)

    def gradients(self) -> tuple[Float[Tensor, "parts in d"], Float[Tensor, "parts out d"]]:
        """Accumulated gradients of a and b."""
        if self.p != 2.0:
            return self.grad_a, self.grad_b
        # Rows of grad_a: column sums of Q, then Q^T b. Rows of grad_b: -2 Q a, then row sums of Q.
        grad_a = self.a * self.grad_a[:, :1].mT - self.grad_a[:, 1:].mT
        grad_b = self.b * self.grad_b[:, -1:].mT + 0.5 * self.grad_b[:, :-1].mT
        return grad_a, grad_b
