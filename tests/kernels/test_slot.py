"""A value handed from one layer of a block to a later one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from peft_kernels.slot import Slot

from .reading_model import batch


class Handing(nn.Module):
    """A block whose first layer hands its input to its last."""

    def __init__(self) -> None:
        super().__init__()
        self.slot = Slot()
        self.linear = nn.Linear(3, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        with self.slot.open():
            self.slot.put(2 * x)
            return torch.tanh(self.linear(x)) + self.slot.get()


@pytest.mark.parametrize("reentrant", [False, True])
def test_slot_is_filled_anew_by_recomputation(reentrant: bool) -> None:
    block, x = Handing(), batch().requires_grad_()
    [plain] = torch.autograd.grad(block(x).square().sum(), x)
    first, second = (checkpoint(block, scale * x, use_reentrant=reentrant).square().sum() for scale in (1, 1))
    (first + second).backward()
    torch.testing.assert_close(x.grad, 2 * plain)


def test_slot_is_empty_after_its_block() -> None:
    block = Handing()
    block(batch())
    with pytest.raises(LookupError, match="not bound"):
        block.slot.get()
    with pytest.raises(LookupError, match="no forward pass"):
        block.slot.put(1)
