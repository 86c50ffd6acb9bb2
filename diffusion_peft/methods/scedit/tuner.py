"""Attaches SCEdit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from diffusion_peft.methods.scedit.adapter import ScTuner, SkipLayer
from diffusion_peft.methods.scedit.condition import ConditionEncoder, ConditionLayer
from peft_kernels.config import nearest
from peft_kernels.layer import AdapterLayer
from peft_kernels.skips import Skip, long_skips
from peft_kernels.slices import Rows
from peft_kernels.targets import compress, plain_modules
from peft_kernels.tuner import AdapterTuner

if TYPE_CHECKING:
    from diffusion_peft.methods.scedit.config import SceditConfig


class SceditTuner(AdapterTuner):
    """Attaches SCEdit."""

    layer_cls = SkipLayer
    skips: list[Skip]

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        given = peft_config.unresolved_copy()
        self.skips = self._skips(given)
        widths = [skip.channels for skip in self.skips]
        if given.skip_channels is not None and list(given.skip_channels) != widths:
            wrong = next((j for j, (a, b) in enumerate(zip(given.skip_channels, widths)) if a != b), None)  # noqa: B905
            first = "" if wrong is None else f"; skip {wrong} ({self.skips[wrong].reader}) has {widths[wrong]} channels"
            raise ValueError(
                f"this SCEdit adapter is for another UNet: it edits {len(given.skip_channels)} skips of "
                f"{list(given.skip_channels)} channels, this {type(self.model).__name__} has {len(widths)} of {widths}"
                + (f"{first}, expected {given.skip_channels[wrong]}" if wrong is not None else "")
            )
        self._check_sizes(given)
        config = super()._prepare_adapter_config(peft_config, model_config)
        if config.skip_channels is None:
            config._before["skip_channels"] = (None, widths)
            config.skip_channels = widths
        return config

    def _skips(self, config: SceditConfig) -> list[Skip]:
        """The model's skips; of a network of another family those that the configuration describes."""
        try:
            return long_skips(self.model)
        except ValueError:
            if config.skip_channels is None or config.target_modules is None or config.control:
                raise
        names = [name for name, _ in plain_modules(self.model) if self._check_target_module_exists(config, name)]
        if len(names) != len(config.skip_channels):
            raise ValueError(
                f"SceditConfig.skip_channels must have one width for each of the {len(names)} blocks that "
                f"target_modules names; found {config.skip_channels}"
            )
        return [Skip(*named, False) for named in zip(names, config.skip_channels, strict=True)]

    def _check_sizes(self, config: SceditConfig) -> None:
        count = len(self.skips)
        for name, value in (("hidden_sizes", config.hidden_sizes), ("scale", config.scale)):
            if isinstance(value, list) and len(value) != count:
                raise ValueError(
                    f"SceditConfig.{name} must have one entry for each of the {count} skips, in decoder order; "
                    f"found {len(value)}"
                )
        for index in config.skip_indices if config.skip_indices is not None else ():
            if not 0 <= index < count:
                raise ValueError(
                    f"SceditConfig.skip_indices must lie in 0 to {count - 1}, the skips in decoder order; found {index}"
                )
        for index in self._edited(config):
            config.hidden(index, self.skips[index].channels)

    def _edited(self, config: SceditConfig) -> list[int]:
        return list(range(len(self.skips))) if config.skip_indices is None else sorted(set(config.skip_indices))

    def default_targets(self, config: SceditConfig, model: nn.Module) -> str:
        names = [self.skips[index].reader for index in self._edited(config)]
        return compress(model, [self._entry(), *names] if config.control else names)

    def _entry(self) -> str:
        """The UNet's first convolution, beside which condition encoders stand."""
        return f"{self.skips[0].reader.rpartition('up_blocks.')[0]}conv_in"

    def _index(self, key: str) -> int | None:
        return next((index for index, skip in enumerate(self.skips) if skip.reader == key), None)

    def _check_targets(self, config: SceditConfig) -> None:
        super()._check_targets(config)
        keys = [key for key, _ in self._targets(config)]
        if config.control and keys and self._entry() not in keys:
            raise ValueError(
                f"target_modules must name {self._entry()!r} too, beside which the condition encoder of a controllable "
                "SCEdit adapter stands; found " + repr(config.target_modules)
            )

    def check_target(self, config: SceditConfig, key: str, base: nn.Module) -> None:
        readers = [self.skips[index].reader for index in self._edited(config)]
        if key not in readers and not (config.control and key == self._entry()):
            raise ValueError(
                f"{key!r} ({type(base).__name__}) reads no skip that this SceditConfig edits{nearest(key, readers)}; "
                f"those do: {', '.join(readers)}"
            )

    def wrap(self, config: SceditConfig, key: str, base: nn.Module) -> AdapterLayer:
        index = self._index(key)
        if index is None:
            return ConditionLayer(base, self.prefix)
        layer = SkipLayer(base, self.prefix, self.skips[index].channels, index == self._edited(config)[0])
        prefix, inside, rest = key.partition("up_blocks.")
        if inside:
            unet = self.model.get_submodule(prefix.rstrip("."))
            behind = [unet.get_submodule(f"{inside}{rest.partition('.')[0]}"), unet._modules.get("conv_out")]
            layer.forget(module for part in behind if part is not None for module in part.modules())
        return layer

    def make_adapter(self, config: SceditConfig, key: str, base: nn.Module, rows: Rows | None) -> nn.Module:
        index = self._index(key)
        if index is None:
            return ConditionEncoder(
                [(skip.channels, skip.halved) for skip in reversed(self.skips)],
                in_channels=config.pre_in_channels,
                out_channels=config.pre_out_channels,
                ratio=config.pre_dim_ratio,
                strides=config.pre_strides,
                kernel=config.dense_kernel,
                zero=config.init_weights,
            )
        channels = self.skips[index].channels
        place = len(self.skips) - 1 - index if config.control else None
        factor = config.scale[index] if isinstance(config.scale, list) else config.scale
        tuner = ScTuner(channels, config.hidden(index, channels), place, factor)
        if config.init_weights:
            tuner.start_at_the_base()
        return tuner

    @staticmethod
    def _warn_if_larger(config: Any, key: str, adapter: nn.Module, base: nn.Module) -> None:
        """A condition encoder is larger than the convolution it stands beside, and has nothing to do with its size."""

    def _post_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        super()._post_injection_hook(model, config, adapter_name)
        layers = [module for module in model.modules() if isinstance(module, SkipLayer)]
        for name, entry in list(model.named_modules()):
            if isinstance(entry, ConditionLayer):
                entry.connect(model.get_submodule(name.rpartition(".")[0]), layers)
