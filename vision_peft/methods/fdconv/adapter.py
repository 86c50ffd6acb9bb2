"""What FDConv trains at one layer, and each sample's kernel from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from peft_kernels.feature import Feature
from peft_kernels.ops.fdconv import frequency_groups, sample_kernels, spectrum_of, weight_of
from peft_kernels.ops.spectra import at_least_float32
from vision_peft.methods.fdconv.bands import BandModulation
from vision_peft.methods.fdconv.modulation import Gate, GlobalModulation, LocalModulation

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

    groups: Tensor

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
        nn.init.kaiming_normal_(self.ksm_global.squeeze.weight, mode="fan_out", nonlinearity="relu")
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
        found = sample_kernels(
            spectrum, gains.to(dtype), self.groups, (channels, k1, k2), *tensors, multiplier=multiplier
        )
        return found, None if whole else channel, None if whole else filters

    def why_no_merge(self) -> str:
        return "its kernel depends on the input, and every sample has another"
