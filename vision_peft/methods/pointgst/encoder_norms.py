"""Statistics of the frozen patch encoder's batch norms that move while adapters train, and belong to the adapter."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from peft_kernels.feature import Feature, FeatureLayer


class Statistics(Feature):
    """Running mean and variance of their own for a batch norm whose weight and bias stay the base's."""

    def __init__(self, base: nn.BatchNorm1d) -> None:
        super().__init__()
        assert base.running_mean is not None
        device = base.running_mean.device
        self.norm = nn.BatchNorm1d(base.num_features, base.eps, base.momentum, affine=False, device=device)
        self.norm.num_batches_tracked = None  # counts for averages without momentum alone
        self.norm.load_state_dict(base.state_dict(), strict=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError("statistics take the place of others; `StatisticsLayer` does it")

    def normalised(self, x: Tensor) -> Tensor:
        """Rows ``[R, C]`` of mean 0 and variance 1, in the precision of the statistics and then as ``x`` has it."""
        assert self.norm.running_mean is not None
        return self.norm(x.to(self.norm.running_mean.dtype)).to(x.dtype)

    def why_no_merge(self) -> str:
        return "the adapters beside the blocks mix tokens by a basis that depends on the cloud"


class StatisticsLayer(FeatureLayer):
    """A frozen batch norm with statistics of the running adapters; a scale interpolates between outputs."""

    def adapted_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base: Any = self.base_layer
        found = [(cast(Statistics, adapter).normalised(x), scale) for adapter, scale in self.running]
        found = [(torch.addcmul(base.bias, own, base.weight), scale) for own, scale in found]
        if len(found) == 1 and found[0][1] == 1:
            return found[0][0]
        plain = base(x)
        return plain + sum(scale * (own - plain) for own, scale in found)
