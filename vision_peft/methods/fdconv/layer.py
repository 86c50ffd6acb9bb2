"""The layer that PEFT puts around a convolution or linear layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from peft_kernels.feature import FeatureLayer
from vision_peft.methods.fdconv.adapter import FrequencyDynamic
from vision_peft.methods.fdconv.forward import FrozenSpectrum, rebuilt
from vision_peft.methods.fdconv.modulation import means


class FdconvLayer(FeatureLayer):
    """A convolution or linear layer whose kernel is rebuilt for every sample.

    A scale s interpolates: ``(1 - s) f(x) + s y``; several adapters add their differences to ``f(x)``.
    """

    def __init__(self, base_layer: nn.Module, prefix: str) -> None:
        super().__init__(base_layer, prefix)
        self._spectrum = FrozenSpectrum()

    def adapted_forward(self, x: Tensor) -> Tensor:
        base: Any = self.base_layer
        if not len(x):
            return base(x)
        running: list[Any] = [(adapter, scale) for adapter, scale in self.running if scale != 0]
        if len(running) == 1 and running[0][1] == 1:
            return self._dynamic(running[0][0], x)
        plain = y = base(x)
        for adapter, scale in running:
            y = y + scale * (self._dynamic(adapter, x) - plain)
        return y

    def kernels(self, x: Tensor, adapter: str = "default") -> Tensor:
        """The kernel of every sample of ``x`` with all factors, ``[B, Co, Ci, k1, k2]``."""
        chosen: Any = self.adapters[adapter]
        axis = -1 if isinstance(self.base_layer, nn.Linear) else 1
        with torch.autocast(x.device.type, enabled=False):
            return chosen.kernels(means(x, axis), self._base_spectrum(chosen))[0]

    def _base_spectrum(self, adapter: FrequencyDynamic) -> Tensor | None:
        """That of the frozen weight; ``None`` in spectral mode."""
        base: Any = self.base_layer
        return None if adapter.dft_weight is not None else self._spectrum.of(base.weight)

    def _dynamic(self, adapter: FrequencyDynamic, x: Tensor) -> Tensor:
        base: Any = self.base_layer
        bias = base.bias if adapter.dft_weight is None else adapter.bias
        return rebuilt(adapter, base, x, self._base_spectrum(adapter), bias)
