"""Features of a few points carried to many: inverse-distance interpolation (PointNet++, Qi et al., NeurIPS 2017).

f(x) = Σ_j w_j f_j / Σ_j w_j,    w_j = 1 / (‖x − c_j‖² + ε)    over the k points c_j nearest to x
"""

from jaxtyping import Float
from torch import Tensor

from .neighbours import gathered, nearest_neighbours


def interpolate_features(
    points: Float[Tensor, "batch points 3"],
    centers: Float[Tensor, "batch centers 3"],
    features: Float[Tensor, "batch centers channels"],
    k: int = 3,
    eps: float = 1e-8,
) -> Float[Tensor, "batch points channels"]:
    """Features at ``points`` from those at ``centers``; gradients pass to the features.

    Where there are fewer centres than ``k``, all of them count.

    Raises:
        ValueError: no clouds of finite points, or features that are not one a centre.
    """
    if features.shape[:2] != centers.shape[:2]:
        raise ValueError(f"features must be one a centre {list(centers.shape[:2])}; found {list(features.shape)}")
    index = nearest_neighbours(centers, points, min(k, centers.shape[1]))
    near = gathered(centers.detach(), index)
    weight = ((near - points.detach()[:, :, None]).square().sum(-1) + eps).reciprocal()
    weight = (weight / weight.sum(-1, keepdim=True)).to(features.dtype)
    return (gathered(features, index) * weight[..., None]).sum(2)
