"""Attaches FDConv."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any

from torch import nn

from peft_kernels.layer import AdapterLayer
from peft_kernels.slices import Rows
from peft_kernels.targets import compress, default_targets, plain_modules
from peft_kernels.tuner import AdapterTuner
from vision_peft.methods.fdconv.adapter import FrequencyDynamic
from vision_peft.methods.fdconv.layer import FdconvLayer

if TYPE_CHECKING:
    from vision_peft.methods.fdconv.config import FdconvConfig


KIND = "dynamic"


class FdconvTuner(AdapterTuner):
    """Attaches FDConv to convolutions of residual blocks and to MLPs, within the authors' rule."""

    layer_cls = FdconvLayer
    target_kind = KIND

    def default_targets(self, config: FdconvConfig, model: nn.Module) -> str:
        return compress(model, targets(config, model))

    def check_target(self, config: FdconvConfig, key: str, base: nn.Module) -> None:
        check_layer(config, key, base)

    def _check_targets(self, config: FdconvConfig) -> None:
        super()._check_targets(config)
        reasons = {key: why_plain(config, _base(module)) for key, module in self._targets(config)}
        if reasons and all(reasons.values()):
            key, reason = next(iter(reasons.items()))
            raise ValueError(f"FDConv would leave all targets as they are: {key!r} {reason}")

    def _create_and_replace(
        self, peft_config: Any, adapter_name: str, target: nn.Module, target_name: str, parent: nn.Module,
        current_key: str, parameter_name: str | None = None,
    ) -> None:  # fmt: skip
        reason = why_plain(peft_config, _base(target))
        if reason is not None:
            warnings.warn(f"FDConv leaves {current_key!r} as it is: it {reason}", stacklevel=2)
            return
        super()._create_and_replace(peft_config, adapter_name, target, target_name, parent, current_key, parameter_name)

    def make_adapter(self, config: FdconvConfig, key: str, base: nn.Module, rows: Rows | None) -> FrequencyDynamic:
        weight: Any = base.weight
        bands = isinstance(base, nn.Conv2d) and base.kernel_size[0] in config.use_fbm_if_k_in
        four = weight if weight.ndim == 4 else weight[..., None, None]
        return FrequencyDynamic(config, four, base.bias, bands)  # type: ignore[arg-type]


def check_layer(config: FdconvConfig, key: str, base: nn.Module) -> None:
    """Raise a ValueError where these settings do not fit this layer, with the nearest that do."""
    if not isinstance(base, (nn.Linear, nn.Conv2d)) or isinstance(base, nn.modules.conv._ConvTransposeNd):
        raise ValueError(f"FDConv adapts 2d convolutions and linear layers; {key!r} is a {type(base).__name__}")
    if why_plain(config, base) is not None:
        return
    if isinstance(base, nn.Conv2d):
        if base.groups != 1:
            raise ValueError(f"FDConv adapts ungrouped convolutions; {key!r} has {base.groups} groups")
        if base.kernel_size[0] != base.kernel_size[1]:
            raise ValueError(f"FDConv adapts square kernels; that of {key!r} is {base.kernel_size}")
    out, channels, size = sizes(base)
    count, entries = config.groups_of(out), out * size * (channels * size // 2 + 1)
    if not 2 <= count <= entries:
        raise ValueError(
            f"{key!r} has a spectrum of {entries} entries, in from 2 to {entries} groups; `kernel_num` asks for {count}"
        )
    groups = config.fbm_spatial_group
    if size in config.use_fbm_if_k_in and groups <= 64 and channels % groups:
        fitting = min((d for d in range(1, channels + 1) if channels % d == 0), key=lambda d: abs(d - groups))
        raise ValueError(
            f"fbm_spatial_group={groups} does not divide the {channels} channels of {key!r}: the nearest that does "
            f"is {fitting}"
        )


def _base(module: nn.Module) -> nn.Module:
    return module.base_layer if isinstance(module, AdapterLayer) else module


def targets(config: FdconvConfig, model: nn.Module) -> list[str]:
    """The default targets: those of the model's family that the authors' rule adapts.

    Raises:
        ValueError: there is none.
    """
    pattern = re.compile(default_targets(model, KIND))
    modules = ((name, module) for name, module in plain_modules(model) if pattern.fullmatch(name))
    found = [n for n, m in modules if why_plain(config, m) is None and getattr(m, "groups", 1) == 1]
    if not found:
        raise ValueError(
            f"FDConv finds no layer in {type(model).__name__} that it would adapt: linear layers or convolutions "
            f"of kernel size {config.use_fdconv_if_k_in}, more than {config.use_fdconv_if_c_gt} channels "
            "(`use_fdconv_if_k_in`, `use_fdconv_if_c_gt`)"
        )
    return found


def sizes(base: Any) -> tuple[int, int, int]:
    """Output channels, input channels and kernel size."""
    if isinstance(base, nn.Linear):
        return base.out_features, base.in_features, 1
    return base.out_channels, base.in_channels, base.kernel_size[0]


def why_plain(config: FdconvConfig, base: nn.Module) -> str | None:
    """Why the authors' rule leaves the layer as it is, as the rest of a sentence; ``None`` where it is adapted."""
    if not isinstance(base, (nn.Linear, nn.Conv2d)):
        return None
    out, channels, size = sizes(base)
    if isinstance(base, nn.Conv2d) and base.groups == channels > 1:
        return "is a depthwise convolution"
    if size not in config.use_fdconv_if_k_in:
        return f"has kernel size {size}, which is not among {config.use_fdconv_if_k_in} (`use_fdconv_if_k_in`)"
    if min(out, channels) <= config.use_fdconv_if_c_gt:
        return f"has {min(out, channels)} channels, not more than {config.use_fdconv_if_c_gt} (`use_fdconv_if_c_gt`)"
    return None
