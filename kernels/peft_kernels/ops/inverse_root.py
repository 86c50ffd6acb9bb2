"""``G^(-1/2)`` of a well-conditioned positive definite matrix by the best rational approximation of its degree.

Zolotarev's function ``s (1 + Σ_j a_j / (x + c_j))`` with m poles is nearest to ``x^(-1/2)`` on an interval in the
largest relative difference (Nakatsukasa and Freund, SIAM Review 58(3), 2016). Each pole is one Cholesky factorisation
and inverse, ``n³`` multiplications; three of them are exact to 1e-5 where eigenvalues spread over a factor of 13.
An eigendecomposition takes some nine ``n³``, half of them matrix times vector.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

MOST_POLES = 5  # five cost as much as an eigendecomposition
EXACT_TO = 1e-5  # relative, in every eigenvalue of the root
STEPS = 24  # of Lanczos, for the interval
BELOW, ABOVE = 0.9, 1.02  # of the smallest and the largest value that they find: how far the spectrum may go beyond
PROBES, MISSED = 4, 1e-4  # random vectors that the root is tried on, and the relative residual that refutes it


def inverse_root(gram: Float[Tensor, "side side"]) -> Float[Tensor, "side side"] | None:
    """``G^(-1/2)``, or ``None`` for a matrix that `MOST_POLES` are too few for (condition numbers above some 200)."""
    size, limits = float(gram.diagonal().amax()), torch.finfo(gram.dtype)
    if not limits.tiny / limits.eps < size < math.inf:  # below that its entries have lost digits
        return None
    gram = gram / size  # squares of its entries, which norms add up, may be beyond the type
    low, high = extreme_eigenvalues(gram)
    low, high = BELOW * low, ABOVE * high
    found = _fewest_poles(low / high) if low > 0 else None
    if found is None:
        return None
    scale, weights, shifts = found
    root = torch.zeros_like(gram)
    root.diagonal().fill_(scale)
    for weight, shift in zip(weights, shifts, strict=True):
        shifted = gram / high
        shifted.diagonal().add_(shift)
        factor = torch.linalg.cholesky_ex(shifted).L
        root.add_(torch.cholesky_inverse(factor), alpha=scale * weight)
    root.mul_(high**-0.5)
    probes = _random(gram, PROBES)
    residual = root @ (gram @ (root @ probes)) - probes
    return root.mul_(size**-0.5) if bool(residual.norm() <= MISSED * probes.norm()) else None


def extreme_eigenvalues(gram: Float[Tensor, "side side"]) -> tuple[float, float]:
    """Estimates from inside the spectrum of its smallest and largest value, by Lanczos' iteration; (0, 0) of zeros."""
    vector = _random(gram, 1).squeeze(1)
    vector, before, beta = vector / vector.norm(), torch.zeros_like(vector), gram.new_zeros(())
    diagonal, beside = [], []
    for _ in range(min(STEPS, len(gram))):
        image = gram @ vector - beta * before
        diagonal.append(image @ vector)
        image -= diagonal[-1] * vector
        beta = image.norm()
        beside.append(beta)
        before, vector = vector, image / beta.clamp_min(torch.finfo(beta.dtype).tiny)
    off = torch.diag(torch.stack(beside)[:-1], 1)
    tridiagonal = torch.diag(torch.stack(diagonal)) + off + off.T
    values = torch.linalg.eigvalsh(tridiagonal.double().cpu()).tolist()
    return max(values[0], 0.0), values[-1]


def zolotarev(poles: int, ratio: float) -> tuple[float, np.ndarray, np.ndarray, float]:
    """s, a and c of ``s (1 + Σ_j a_j / (x + c_j)) ≈ x^(-1/2)`` on [ratio, 1], and the largest relative error."""
    from scipy.special import ellipj, ellipk  # a tenth of a second that few need

    sn, cn, _, _ = ellipj(np.arange(1, 2 * poles + 1) * ellipk(1 - ratio) / (2 * poles + 1), 1 - ratio)
    shifts, zeros = ratio * ((sn / cn) ** 2).reshape(-1, 2).T
    apart = shifts[:, None] - shifts + np.eye(poles)
    weights = -np.prod(shifts[:, None] - zeros, 1) / np.prod(apart, 1)
    # relative to x^(-1/2) it swings between two bounds, and the ends of the interval lie on one each
    at_ends = [float(np.sqrt(x) * (1 + np.sum(weights / (x + shifts)))) for x in (ratio, 1.0)]
    return 2 / sum(at_ends), weights, shifts, abs(at_ends[0] - at_ends[1]) / sum(at_ends)


def _fewest_poles(ratio: float) -> tuple[float, list[float], list[float]] | None:
    for poles in range(1, MOST_POLES + 1):
        scale, weights, shifts, error = zolotarev(poles, ratio)
        if error <= EXACT_TO:
            return scale, weights.tolist(), shifts.tolist()
    return None


def _random(like: Tensor, count: int) -> Tensor:
    return torch.randn(len(like), count, generator=torch.Generator().manual_seed(0)).to(like)
