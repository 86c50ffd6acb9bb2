"""How alike two pictures are in structure and texture, by the moments of their features (DISTS).

Ding et al., *Image Quality Assessment: Unifying Structure and Texture Similarity*, TPAMI 2020. Per channel of a stage,
with means m, variances v and the covariance over the pixels,

    l = (2 m m' + c₁) / (m² + m'² + c₁),  s = (2 cov + c₂) / (v + v' + c₂),  1 - Σ (α l + β s) / Σ (α + β)
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from .spectra import at_least_float32


def structure_texture_distance(
    found: Sequence[Float[Tensor, "batch channels height width"]],
    wanted: Sequence[Float[Tensor, "batch channels height width"]],
    alpha: Sequence[Float[Tensor, "channels"]],
    beta: Sequence[Float[Tensor, "channels"]],
    c1: float = 1e-6,
    c2: float = 1e-6,
) -> Float[Tensor, "batch"]:
    """The distance of each picture, 0 where they are the same, in float32 at least.

    Args:
        found: features of the pictures, stage by stage; stages may differ in size.
        wanted: those of the pictures that they should be.
        alpha: weights of the textures (means), at least 0.
        beta: weights of the structures (covariances), at least 0.
        c1: keeps l where both means vanish.
        c2: keeps s where both are flat.

    Raises:
        ValueError: stages do not correspond.
    """
    shapes = [[list(t.shape) for t in stages] for stages in (found, wanted)]
    if shapes[0] != shapes[1] or not len(found) == len(alpha) == len(beta):
        raise ValueError(
            f"features of the same stages are compared, with weights for each; found {shapes[0]} and {shapes[1]}, "
            f"{len(alpha)} and {len(beta)} weights"
        )
    total = torch.stack([weights.sum() for weights in (*alpha, *beta)]).sum()
    parts = []
    for x, y, a, b in zip(found, wanted, alpha, beta, strict=True):
        x, y = at_least_float32(x), at_least_float32(y)
        mx, my = x.mean((2, 3), keepdim=True), y.mean((2, 3), keepdim=True)
        x, y = x - mx, y - my
        mx, my = mx.flatten(1), my.flatten(1)
        texture = (2 * mx * my + c1) / (mx.square() + my.square() + c1)
        structure = (2 * (x * y).mean((2, 3)) + c2) / (x.square().mean((2, 3)) + y.square().mean((2, 3)) + c2)
        parts.append((texture * a + structure * b).sum(1))  # no product of matrices, which autocast would round
    return 1 - torch.stack(parts).sum(0) / total
