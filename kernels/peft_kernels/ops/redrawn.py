"""Random start values that are made again instead of kept: the same for the same seed, on every device.

Opaque, because torch.compile cannot trace a generator.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def redrawn_points(
    A: Float[Tensor, "parts in rank"], B: Float[Tensor, "parts out rank"], seed: int
) -> tuple[Float[Tensor, "parts in rank"], Float[Tensor, "parts out rank"]]:
    """Values in the shapes, dtypes and places of A and B: U(±1/√(n r)) for n points of r coordinates.

    Cost: a draw an entry, in float32 on the CPU, whatever the device.
    """
    return _redrawn(A.detach(), B.detach(), seed)


@torch.library.custom_op("peft_kernels::redrawn_points", mutates_args=())
def _redrawn(A: Tensor, B: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for like in (A, B):
        bound = 1 / math.sqrt(like.shape[1] * like.shape[2])
        drawn = torch.empty(like.shape, dtype=torch.float32, device="cpu").uniform_(-bound, bound, generator=generator)
        made.append(drawn.to(like))
    return made[0], made[1]


@_redrawn.register_fake
def _(A, B, seed):
    return torch.empty_like(A), torch.empty_like(B)
