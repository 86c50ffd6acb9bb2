"""A small model whose blocks need a side input, checkpointed in several ways."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from peft_kernels.context import SideInputs


class Reader(nn.Module):
    """A block that needs a side input: ``x + tanh(x W) * control``."""

    def __init__(self, side: SideInputs) -> None:
        super().__init__()
        self.side = side
        self.linear = nn.Linear(3, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x)) * self.side.get("control")


class Model(nn.Module):
    """Two readers; ``how`` says which calls are checkpointed."""

    def __init__(self, how: str = "plain") -> None:
        super().__init__()
        self.side, self.how = SideInputs(), how
        self.blocks = nn.Sequential(Reader(self.side), Reader(self.side))
        self.handles = self.side.attach(self, segments=self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "one segment":
            return checkpoint(self.blocks, x, use_reentrant=False)
        if self.how == "sequential":
            return checkpoint_sequential(self.blocks, 2, x, use_reentrant=False)
        for block in self.blocks:
            x = block(x) if self.how == "plain" else checkpoint(block, x, use_reentrant=self.how == "reentrant")
        return x


WAYS = ["plain", "each block", "one segment", "sequential"]


def model(how: str) -> Model:
    torch.manual_seed(1)
    return Model(how)


def batch(seed: int = 2) -> Tensor:
    return torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def control(seed: int) -> Tensor:
    return torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradients(net: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in net.parameters() if parameter.grad is not None]


def run(net: Model, x: Tensor, value: Any) -> Tensor:
    with net.side.bind(control=value):
        return net(x).square().sum()


def expected(*passes: tuple[Tensor, Any]) -> list[Tensor]:
    """The gradients of the plain model, one forward and one backward at a time."""
    net = model("plain")
    for x, value in passes:
        run(net, x, value).backward()
    return gradients(net)
