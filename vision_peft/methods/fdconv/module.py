"""Layers with kernels rebuilt per sample as parts of a model, without PEFT: what takes a layer's place."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from peft_kernels.ops.fdconv import spectrum_of, weight_of
from vision_peft.methods.fdconv.adapter import FrequencyDynamic
from vision_peft.methods.fdconv.authors import INSIDE, SPECTRUM, from_authors, is_authors
from vision_peft.methods.fdconv.config import FdconvConfig
from vision_peft.methods.fdconv.forward import FrozenSpectrum, rebuilt
from vision_peft.methods.fdconv.tuner import check_layer, targets


class _Rebuilt(nn.Module):
    """What `FdConv2d` and `FdLinear` share.

    In spectral mode ``weight`` is ``None`` and ``dynamic.dft_weight`` stands for it. A state with a plain weight, or of
    the other mode, loads into either: the weight is converted, and what it does not hold stays as it was. So does a
    state of the authors' layer.
    """

    dynamic: FrequencyDynamic

    def _take_over(self, base: Any, config: FdconvConfig) -> None:
        bands = isinstance(base, nn.Conv2d) and base.kernel_size[0] in config.use_fbm_if_k_in
        four = base.weight if base.weight.ndim == 4 else base.weight[..., None, None]
        self.dynamic = FrequencyDynamic(config, four, None, bands).to(base.weight.device, base.weight.dtype)
        self.weight = base.weight if self.dynamic.dft_weight is None else None
        self.bias = base.bias
        self._spectrum = FrozenSpectrum()
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        return self._rebuilt(x)

    def _rebuilt(self, x: Tensor, segments: Sequence[int] | None = None) -> Tensor:
        base: Any = self
        spectrum = self._spectrum.of(base.weight) if self.dynamic.dft_weight is None else None
        return rebuilt(self.dynamic, self, x, spectrum, base.bias, segments)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        plain, inside = f"{prefix}weight", prefix + INSIDE
        theta, (_, channels, k1, k2) = inside + SPECTRUM, self.dynamic.shape
        self._read_authors(state_dict, prefix)
        unit, copies = self.dynamic.unit, self.dynamic.ksm_global.shape[0]
        if self.dynamic.dft_weight is not None and plain in state_dict:
            weight = state_dict.pop(plain)
            spectrum = spectrum_of(weight if weight.ndim == 4 else weight[..., None, None]) / (unit * copies)
            state_dict[theta] = spectrum.expand(copies, -1, -1, -1)
        elif self.dynamic.dft_weight is None and theta in state_dict:
            weight = weight_of(unit * state_dict.pop(theta).sum(0), channels, k1, k2)
            state_dict[plain] = weight if isinstance(self, nn.Conv2d) else weight[..., 0, 0]
        if not any(key.startswith(inside) and key != theta for key in state_dict):
            own = self.dynamic.state_dict(prefix=inside)
            state_dict.update({key: value for key, value in own.items() if key not in state_dict})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _read_authors(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Give the tensors of the authors' layer their names here, in place."""
        theirs = [key for key in state_dict if key.startswith(prefix) and is_authors(key.removeprefix(prefix))]
        state_dict.update(from_authors({key: state_dict.pop(key) for key in theirs}))
        if all(key.endswith(SPECTRUM) for key in theirs):
            return
        if "groups" in self.dynamic.state_dict():
            state_dict.setdefault(f"{prefix}{INSIDE}groups", self.dynamic.groups)
        else:
            warnings.warn(
                "the authors' gains are for groups of frequencies in their order, a few entries of which differ from "
                'this model\'s: make it with freq_order="official"',
                stacklevel=2,
            )


class FdConv2d(_Rebuilt, nn.Conv2d):
    """A convolution whose kernel is rebuilt for every sample.

    Args:
        base: the convolution whose weight and settings it takes.
        config: FDConv's settings.
    """

    def __init__(self, base: nn.Conv2d, config: FdconvConfig) -> None:
        sizes: Any = base.in_channels, base.out_channels, base.kernel_size, base.stride, base.padding, base.dilation
        nn.Conv2d.__init__(self, *sizes, padding_mode=base.padding_mode, bias=base.bias is not None, device="meta")
        self._take_over(base, config)


class FdLinear(_Rebuilt, nn.Linear):
    """A linear layer whose matrix is rebuilt for every sample.

    Args:
        base: the layer whose weight it takes.
        config: FDConv's settings.
    """

    def __init__(self, base: nn.Linear, config: FdconvConfig) -> None:
        nn.Linear.__init__(self, base.in_features, base.out_features, base.bias is not None, device="meta")
        self._take_over(base, config)

    def forward(self, x: Tensor, segments: Sequence[int] | None = None) -> Tensor:
        """Outputs of ``[batch, ..., in]``; ``segments`` are the lengths of sequences packed one after another.

        Raises:
            ValueError: the segments are not as long as the tokens are many.
        """
        return self._rebuilt(x, segments)


@torch.no_grad()
def rebuild(model: nn.Module, config: FdconvConfig | None = None) -> nn.Module:
    """The model with FDConv's default targets replaced, in place.

    Args:
        model: of a family with default targets.
        config: FDConv's settings; by default those of the spectral mode.

    Raises:
        ValueError: the model has no layer that FDConv would adapt, or the settings do not fit one of them.
    """
    config = config or FdconvConfig(mode="spectral")
    chosen = targets(config, model)
    for name in chosen:
        check_layer(config, name, model.get_submodule(name))
    for name in chosen:
        parent, _, leaf = name.rpartition(".")
        base: Any = model.get_submodule(name)
        layer = FdLinear(base, config) if isinstance(base, nn.Linear) else FdConv2d(base, config)
        setattr(model.get_submodule(parent), leaf, layer)
    return model
