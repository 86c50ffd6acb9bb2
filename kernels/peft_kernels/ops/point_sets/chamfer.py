"""The Chamfer distance of two clouds: how far each point of one is from the nearest of the other, both ways.

    d(X, Y) = mean_x min_y ‖x − y‖² + mean_y min_x ‖x − y‖²

FLOPs: 8 · batch · points of X · points of Y; as many values are held.
"""

from jaxtyping import Float
from torch import Tensor


def chamfer_distance(x: Float[Tensor, "*batch n 3"], y: Float[Tensor, "*batch m 3"]) -> Float[Tensor, "*batch"]:
    """The squared distance of every pair of clouds.

    Raises:
        ValueError: clouds of other shapes, or without points.
    """
    if x.shape[:-2] != y.shape[:-2] or x.shape[-1] != 3 or y.shape[-1] != 3 or 0 in (x.shape[-2], y.shape[-2]):
        raise ValueError(
            f"expected pairs of clouds [..., points, 3] with points; found {list(x.shape)}, {list(y.shape)}"
        )
    squares = (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)
    return squares.amin(-1).mean(-1) + squares.amin(-2).mean(-1)
