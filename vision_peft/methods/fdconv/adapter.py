"""FDConv on one layer: the sample's kernels from the layer's weight, and the layer that convolves with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peft_kernels.feature import Feature, FeatureLayer
from peft_kernels.ops.fdconv import frequency_groups, sample_kernels, spectrum_of, weight_of
from peft_kernels.ops.spectra import at_least_float32
from vision_peft.methods.fdconv.bands import BandModulation
from vision_peft.methods.fdconv.modulation import Gate, GlobalModulation, LocalModulation, means

if TYPE_CHECKING:
    from vision_peft.methods.fdconv.config import FdconvConfig


class FrequencyDynamic(Feature):
    """What FDConv adds to one layer.

    Args:
        config: the settings.
        weight: the layer's, ``[Co, Ci, k1, k2]``; only its sizes in frozen base mode.
        bias: the layer's, if any; trained in spectral mode.
        bands: whether the layer's input has its bands modulated.
    """

    def __init__(self, config: FdconvConfig, weight: Tensor, bias: Tensor | None, bands: bool) -> None:
        super().__init__()
        out, channels, k1, k2 = self.shape = tuple(weight.shape)
        copies, count = config.param_ratio, config.groups_of(out)
        self.unit = min(out, channels) // 2
        hidden = max(int(channels * config.reduction), 16)
        self.ksm_global = GlobalModulation(
            (channels, out),
            k1 * k2,
            (copies, count),
            hidden,
            config.ksm_norm,
            config.ksm_only_kernel_att,
            Gate.of(config.ksm_global_act, config.att_multi),
            config.temperatures(out),
        )
        self.ksm_local = None
        if config.use_ksm_local:
            gate = Gate.of(config.ksm_local_act, config.att_multi)
            self.ksm_local = LocalModulation(channels, out * k1 * k2, gate, config.ksm_norm != "rms")
        self.fbm = None
        if bands:
            groups = config.fbm_spatial_group if config.fbm_spatial_group <= 64 else channels
            cuts, kernel = tuple(config.fbm_k_list), config.fbm_spatial_kernel
            self.fbm = BandModulation(
                channels, cuts, groups, kernel, config.fbm_act, config.fbm_lowfreq_att, config.fbm_mask
            )
        groups_of_entries = frequency_groups(out * k1, channels * k2, count, config.freq_order)
        self.register_buffer("groups", groups_of_entries.clone(), persistent=config.freq_order == "official")
        self.dft_weight = self.bias = None
        if config.mode == "spectral":
            spectrum = spectrum_of(weight.detach()) / (self.unit * copies)
            self.dft_weight = nn.Parameter(spectrum.expand(copies, -1, -1, -1).clone())
            self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self._start(config)

    @torch.no_grad()
    def _start(self, config: FdconvConfig) -> None:
        heads = self.ksm_global.heads
        nn.init.kaiming_normal_(self.ksm_global.fc.weight, mode="fan_out", nonlinearity="relu")
        std = 0.0 if config.init == "identity" else 1e-6
        std = std if config.init_weights else 0.5
        for name, head in heads.items():
            nn.init.normal_(head.weight, std=std)
            nn.init.zeros_(head.bias)
            if name == "filter" and config.init == "official":
                nn.init.kaiming_normal_(head.weight, mode="fan_out", nonlinearity="relu")
        if self.ksm_local is not None:
            if config.init_weights:
                nn.init.constant_(self.ksm_local.weight, std)
            else:
                nn.init.normal_(self.ksm_local.weight, std=std)
        if self.fbm is not None:
            nn.init.normal_(self.fbm.weight, std=std)

    def plain_weight(self) -> Tensor:
        """The weight of the trained spectrum (spectral mode), without any modulation."""
        assert self.dft_weight is not None
        _, channels, k1, k2 = self.shape
        return weight_of(self.unit * self.dft_weight.sum(0), channels, k1, k2)

    def kernels(
        self, pooled: Tensor, spectrum: Tensor | None, whole: bool = True
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Each sample's kernel ``[B, Co, Ci, k1, k2]``, and the factors of input and output channels left out of it.

        Args:
            pooled: the mean of every input channel, ``[B, Ci]``.
            spectrum: of the frozen weight; ``None`` in spectral mode.
            whole: whether no factors are left out.
        """
        _, channels, k1, k2 = self.shape
        channel, filters, taps, gains = self.ksm_global(pooled)
        if self.dft_weight is not None:
            spectrum, gains = at_least_float32(self.dft_weight), self.unit * gains
        else:
            assert spectrum is not None
            spectrum = spectrum[None]
        slid, local, multiplier = None, None, 2.0
        if self.ksm_local is not None:
            slid, local = self.ksm_local(pooled)
            multiplier = self.ksm_local.gate.multiplier
        dtype = spectrum.dtype
        taps = None if taps is None else taps.unflatten(1, (k1, k2))
        inside = (filters, taps, channel) if whole else (None, taps, None)
        tensors = [None if t is None else t.to(dtype) for t in (*inside, slid, local)]
        found = sample_kernels(spectrum, gains.to(dtype), self.groups, (channels, k1, k2), *tensors, multiplier)
        return found, None if whole else channel, None if whole else filters

    def why_no_merge(self) -> str:
        return "its kernel depends on the input, and every sample has another"


class FdconvLayer(FeatureLayer):
    """A convolution or linear layer whose kernel is rebuilt for every sample.

    A scale s interpolates: ``(1 - s) f(x) + s y``; several adapters add their differences to ``f(x)``.
    """

    def __init__(self, base_layer: nn.Module, prefix: str) -> None:
        super().__init__(base_layer, prefix)
        self._spectrum: tuple[Any, Tensor] | None = None

    def adapted_forward(self, x: Tensor) -> Tensor:
        base: Any = self.base_layer
        if not len(x):
            return base(x)
        running = [(adapter, scale) for adapter, scale in self.running if scale != 0]
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

    def _base_spectrum(self, adapter: Any) -> Tensor | None:
        """That of the frozen weight, computed once; ``None`` in spectral mode."""
        if adapter.dft_weight is not None:
            return None
        weight: Any = self.base_layer.weight
        four = weight if weight.ndim == 4 else weight[..., None, None]
        # A compiled graph sees no version of a tensor: there it is part of the graph.
        if torch.compiler.is_compiling() or (weight.requires_grad and torch.is_grad_enabled()):
            return spectrum_of(four)
        version = None if weight.is_inference() else weight._version
        key = (version, weight.data_ptr(), weight.device, weight.dtype)
        if self._spectrum is None or self._spectrum[0] != key:
            with torch.no_grad():
                self._spectrum = key, spectrum_of(four)
        return self._spectrum[1]

    def _dynamic(self, adapter: Any, x: Tensor) -> Tensor:
        base: Any = self.base_layer
        bias = base.bias if adapter.dft_weight is None else adapter.bias
        if isinstance(base, nn.Linear):
            return self._linear(adapter, x, bias)
        if x.ndim == 3:
            return self._dynamic(adapter, x[None])[0]
        out, channels, k1, k2 = adapter.shape
        whole = out * channels * k1 * k2 < (channels + out) * x.shape[-2] * x.shape[-1]
        with torch.autocast(x.device.type, enabled=False):
            kernels, before, after = adapter.kernels(means(x, 1), self._base_spectrum(adapter), whole)
        if adapter.fbm is not None:
            x = adapter.fbm(x)
        if before is not None:
            x = x * before[:, :, None, None].to(x.dtype)
        if after is None:
            return self._convolution(x, kernels, bias)
        y = self._convolution(x, kernels) * after[:, :, None, None].to(x.dtype)
        return y if bias is None else y + bias.to(y.dtype)[:, None, None]

    def _convolution(self, x: Tensor, kernels: Tensor, bias: Tensor | None = None) -> Tensor:
        """Every sample with its own kernel: one grouped convolution."""
        base: Any = self.base_layer
        padding = base.padding
        if base.padding_mode != "zeros":
            x, padding = F.pad(x, base._reversed_padding_repeated_twice, mode=base.padding_mode), 0
        samples = len(x)
        biases = None if bias is None else bias.to(x.dtype).repeat(samples)
        y = F.conv2d(
            x.reshape(1, -1, *x.shape[2:]), kernels.to(x.dtype).flatten(0, 1), biases,
            base.stride, padding, base.dilation, samples,
        )  # fmt: skip
        return y.view(samples, -1, *y.shape[2:])

    def _linear(self, adapter: Any, x: Tensor, bias: Tensor | None) -> Tensor:
        """The mean is over all axes between the first and the last."""
        if x.ndim == 1:
            return self._linear(adapter, x[None], bias)[0]
        tokens = x.flatten(1, -2) if x.ndim > 2 else x[:, None]
        out, channels = adapter.shape[:2]
        whole = out * channels < (channels + out) * tokens.shape[1]
        with torch.autocast(x.device.type, enabled=False):
            kernels, before, after = adapter.kernels(means(tokens, -1), self._base_spectrum(adapter), whole)
        if before is not None:
            tokens = tokens * before[:, None].to(tokens.dtype)
        y = torch.bmm(tokens, kernels[..., 0, 0].to(tokens.dtype).transpose(1, 2))
        if after is not None:
            y = y * after[:, None].to(y.dtype)
        y = y if bias is None else y + bias.to(y.dtype)
        return y.view(*x.shape[:-1], -1)
