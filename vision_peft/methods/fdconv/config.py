"""The settings of FDConv."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field

from peft_kernels.config import MethodConfig, choices, require
from peft_kernels.ops.fdconv import MASKS, ORDERS
from peft_kernels.registry import register
from vision_peft.methods.fdconv import bands, modulation
from vision_peft.methods.fdconv.tuner import FdconvTuner


@register(
    "fdconv",
    tuner=FdconvTuner,
    prefix="fdconv_",
    family="vision",
    summary="Kernels rebuilt per sample from the weight's spectrum",
    paper="Chen et al., CVPR 2025",
    needs="convolutions or linear layers of more than 16 channels",
)
@dataclass
class FdconvConfig(MethodConfig):
    """FDConv: every sample has a kernel of its own, made of the weight's groups of frequencies; nothing merges.

    ResNet-50: 3,586,704 parameters in frozen base mode without the head. Per layer, with ``h = max(⌊Ci r⌋, 16)``:
    ``2 h Ci + Ci + 2 h + 2 + h Co + Co + [k > 1] (h k² + k²) + h n + n`` of the global branch, ``Co k² κ + 2 Ci`` of
    the local one, ``3 (9 Ci + 1)`` of the bands; spectral mode trains the spectrum too, ``2 Co k (⌊Ci k / 2⌋ + 1)``.

    Args:
        mode: ``frozen_base``: the weight stays, factors and bands are trained; ``spectral``: the weight is trained too,
            as its spectrum, and the bias.
        kernel_num: the number n of groups of frequencies; ``None`` takes half of the output channels, and √n for
            ``kernel_temp``.
        param_ratio: copies of the spectrum (spectral mode), each with gains of its own; each starts with its share.
        reduction: hidden width of the global branch, as a part of the input channels, at least 16.
        temp: temperature of channel, filter and tap factors; ``None`` takes that of the groups.
        kernel_temp: temperature of the groups' gains.
        att_multi: m of ``m σ(t)``; at any other value than 2 the start is no identity.
        ksm_only_kernel_att: whether there are only the groups' gains, and no channel, filter and tap factors.
        ksm_global_act: ``sigmoid`` (m σ) or ``tanh`` (1 + tanh).
        ksm_norm: norm of the hidden layer: ``frozen`` (a batch norm whose statistics stay 0 and 1, as in the published
            detectors), ``batch``, ``layer``, ``none``, or ``rms``, the authors' variant of linear layers (a ReLU after
            it, and no norm in the local branch).
        use_ksm_local: whether there are factors at every entry of the kernel.
        ksm_local_act: as ``ksm_global_act``.
        use_fdconv_if_c_gt: layers with more than so many channels on both sides are adapted.
        use_fdconv_if_k_in: sizes of the kernels that are adapted.
        use_fbm_if_k_in: sizes of the kernels whose input has its bands modulated.
        fbm_k_list: the bands' cuts k, ascending: 0.5 / k cycles a pixel.
        fbm_lowfreq_att: whether what is below the last cut is scaled too.
        fbm_act: ``sigmoid``, ``tanh`` or ``softmax`` (over the groups of channels).
        fbm_spatial_group: groups of channels that have a map of their own; more than 64 stand for one a channel.
        fbm_spatial_kernel: odd size of the convolutions that make the maps.
        fbm_mask: ``grid64``, the authors' mask, or ``exact``.
        freq_order: ``exact``, the same anywhere, or ``official``, the authors' order, which is saved with the adapter.
        init: ``identity``, or ``official``: the authors' start, whose filter factors change the function.
    """

    mode: str = field(default="frozen_base", metadata={"help": "'frozen_base', or 'spectral': the weight trains too."})
    kernel_num: int | None = field(default=64, metadata={"help": "Groups of frequencies; none: half of the outputs."})
    param_ratio: int = field(default=1, metadata={"help": "Copies of the spectrum (spectral mode)."})
    reduction: float = field(default=0.0625, metadata={"help": "Hidden width over input channels, at least 16."})
    temp: float | None = field(default=None, metadata={"help": "Temperature of the factors; none: kernel_temp."})
    kernel_temp: float = field(default=1.0, metadata={"help": "Temperature of the groups' gains."})
    att_multi: float = field(default=2.0, metadata={"help": "Largest factor; 2 starts at the identity."})
    ksm_only_kernel_att: bool = field(default=False, metadata={"help": "Only the groups' gains."})
    ksm_global_act: str = field(default="sigmoid", metadata={"help": "'sigmoid' or 'tanh'."})
    ksm_norm: str = field(default="frozen", metadata={"help": "'frozen', 'batch', 'layer', 'rms' or 'none'."})
    use_ksm_local: bool = field(default=True, metadata={"help": "Factors at every entry of the kernel."})
    ksm_local_act: str = field(default="sigmoid", metadata={"help": "'sigmoid' or 'tanh'."})
    use_fdconv_if_c_gt: int = field(default=16, metadata={"help": "Layers with more channels are adapted."})
    use_fdconv_if_k_in: list[int] = field(default_factory=lambda: [1, 3], metadata={"help": "Kernel sizes adapted."})
    use_fbm_if_k_in: list[int] = field(default_factory=lambda: [3], metadata={"help": "Kernel sizes with bands."})
    fbm_k_list: list[float] = field(default_factory=lambda: [2, 4, 8], metadata={"help": "Cuts: 0.5 / k cycles."})
    fbm_lowfreq_att: bool = field(default=False, metadata={"help": "Scale what is below the last cut too."})
    fbm_act: str = field(default="sigmoid", metadata={"help": "'sigmoid', 'tanh' or 'softmax'."})
    fbm_spatial_group: int = field(default=1, metadata={"help": "Groups of channels with maps of their own."})
    fbm_spatial_kernel: int = field(default=3, metadata={"help": "Size of the convolutions that make the maps."})
    fbm_mask: str = field(default="grid64", metadata={"help": "'grid64' (the authors') or 'exact'."})
    freq_order: str = field(default="exact", metadata={"help": "'exact', or 'official' (saved with the adapter)."})
    init: str = field(default="identity", metadata={"help": "'identity' or 'official'."})

    def __post_init__(self) -> None:
        super().__post_init__()
        choices(self, "mode", ("frozen_base", "spectral"))
        choices(self, "ksm_global_act", modulation.ACTIVATIONS)
        choices(self, "ksm_local_act", modulation.ACTIVATIONS)
        choices(self, "ksm_norm", modulation.NORMS)
        choices(self, "fbm_act", bands.ACTIVATIONS)
        choices(self, "fbm_mask", MASKS)
        choices(self, "freq_order", ORDERS)
        choices(self, "init", ("identity", "official"))
        whole = self.kernel_num is None or (isinstance(self.kernel_num, int) and self.kernel_num >= 2)
        require(whole, self, "kernel_num", "an integer of at least 2, or None")
        require(isinstance(self.param_ratio, int) and self.param_ratio >= 1, self, "param_ratio", "an integer >= 1")
        if self.mode == "frozen_base":
            require(self.param_ratio == 1, self, "param_ratio", "1 with mode='frozen_base' (there is one weight)")
        require(0 < self.reduction <= 1, self, "reduction", "above 0 and at most 1")
        require(self.temp is None or self.temp > 0, self, "temp", "above 0, or None")
        require(self.kernel_temp > 0, self, "kernel_temp", "above 0")
        require(self.att_multi > 0, self, "att_multi", "above 0")
        cuts = list(self.fbm_k_list)
        require(bool(cuts) and cuts == sorted(set(cuts)) and cuts[0] > 1, self, "fbm_k_list", "ascending, above 1")
        counted = isinstance(self.fbm_spatial_group, int) and self.fbm_spatial_group >= 1
        require(counted, self, "fbm_spatial_group", "an integer >= 1")
        odd = self.fbm_spatial_kernel % 2 == 1 and self.fbm_spatial_kernel > 0
        require(odd, self, "fbm_spatial_kernel", "odd and above 0")
        if self.att_multi != 2:
            warnings.warn(
                f"att_multi={self.att_multi:g}: every factor starts at {self.att_multi / 2:g} instead of 1, so that "
                "the pretrained kernels are not kept",
                stacklevel=3,
            )

    def groups_of(self, out: int) -> int:
        """The number n of groups of a layer with so many output channels."""
        return out // 2 if self.kernel_num is None else self.kernel_num

    def temperatures(self, out: int) -> tuple[float, float]:
        """Those of the factors and of the gains, for a layer with so many output channels."""
        gains = self.kernel_temp if self.kernel_num else math.sqrt(self.groups_of(out) * self.param_ratio)
        return (gains if self.temp is None else self.temp), gains
