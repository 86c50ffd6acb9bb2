"""Distances between two point sets, a block of rows at a time, and their gradients by thin matrix products.

Squared distances come from one product per block, |b|^2 + |a|^2 - 2 a.b = [1, b, |b|^2] . [|a|^2, -2a, 1], with the
common mean taken off first (distances do not change, cancellation shrinks). A block that holds a pair closer than the
expansion can resolve is computed again from differences, so equal points are at distance 0 exactly.
"""

import torch
from jaxtyping import Float
from torch import Tensor


class PointSets:
    """Two sets of points, `a` [in, d] and `b` [out, d], in blocks of rows of their distance matrix.

    Cost of one block of c rows: 2 (d + 2) c in FLOPs for the distances and 4 (d + 1) c in for the gradient.
    """

    def __init__(self, a: Float[Tensor, "in d"], b: Float[Tensor, "out d"], p: float = 2.0):
        mean = torch.cat([a, b]).mean(0)
        self.a, self.b, self.p = a - mean, b - mean, p
        if p != 2.0:
            self.grad_a, self.grad_b = torch.zeros_like(a), torch.zeros_like(b)
            return
        norm_a, norm_b = self.a.square().sum(1), self.b.square().sum(1)
        self.left = torch.stack([torch.ones_like(norm_b), *self.b.T, norm_b])
        self.right = torch.stack([norm_a, *(-2 * self.a).T, torch.ones_like(norm_a)])
        # On other devices the differences are taken always: no host sync, no TF32.
        self.resolved = torch.finfo(a.dtype).eps ** 0.5 * float(norm_a.max() + norm_b.max()) if a.is_cpu else torch.inf
        self.grad_a, self.grad_b = torch.zeros_like(self.right[1:]), torch.zeros_like(self.left[:-1])

    def squared(self, rows: slice) -> tuple[Float[Tensor, "rows in"], bool]:
        """Squared Euclidean distances of some rows, and whether some may be 0."""
        if self.resolved < torch.inf:
            squares = self.left[:, rows].T @ self.right
            if squares.numel() == 0 or not float(squares.amin()) < self.resolved:
                return squares, False
        return self._direct(rows).square_(), True

    def distance(self, rows: slice) -> tuple[Float[Tensor, "rows in"], bool]:
        """Distances of order p of some rows, and whether some may be 0."""
        if self.p != 2.0:
            return self._direct(rows), True
        squares, close = self.squared(rows)
        return squares.sqrt_(), close

    def _direct(self, rows: slice) -> Float[Tensor, "rows in"]:
        return torch.cdist(self.b[rows], self.a, p=self.p, compute_mode="donot_use_mm_for_euclid_dist")

    def accumulate_distance(self, rows: slice, grad: Tensor, distance: Tensor, close: bool) -> None:
        """Add the gradient reaching the distances of some rows; a distance of 0 passes none. Spoils `distance`."""
        if self.p == 2.0:
            if close:
                distance.masked_fill_(distance == 0, torch.inf)
            return self.accumulate(rows, torch.div(grad, distance, out=distance))
        b, a = self.b[rows], self.a
        self.grad_b[rows] += torch.ops.aten._cdist_backward(grad.contiguous(), b, a, self.p, distance)
        self.grad_a += torch.ops.aten._cdist_backward(grad.T.contiguous(), a, b, self.p, distance.T.contiguous())
        return None

    def accumulate(self, rows: slice, weights: Float[Tensor, "rows in"]) -> None:
        """Add sum_j Q_ij (b_i - a_j) to the gradient of b_i and the opposite to that of a_j (p = 2)."""
        self.grad_a.addmm_(self.left[:-1, rows], weights)
        self.grad_b[:, rows] = self.right[1:] @ weights.T

    def gradients(self) -> tuple[Float[Tensor, "in d"], Float[Tensor, "out d"]]:
        """Accumulated gradients of a and b."""
        if self.p != 2.0:
            return self.grad_a, self.grad_b
        # Rows of grad_a: column sums of Q, then Q^T b. Rows of grad_b: -2 Q a, then row sums of Q.
        grad_a = self.a * self.grad_a[0, :, None] - self.grad_a[1:].T
        grad_b = self.b * self.grad_b[-1, :, None] + 0.5 * self.grad_b[:-1].T
        return grad_a, grad_b
