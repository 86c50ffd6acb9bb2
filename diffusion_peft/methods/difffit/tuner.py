"""Attaches DiffFit."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn

from diffusion_peft.methods.difffit.adapter import Fit, FitLayer, Tied, is_fused
from diffusion_peft.methods.difffit.perceptron import forget_hidden, remember_hidden
from diffusion_peft.methods.difffit.places import Place, places, raw_tensors
from diffusion_peft.methods.difffit.settings import ClassTable, Positions, SettingsLayer, check_config, write_config
from peft_kernels.layer import AdapterLayer
from peft_kernels.slices import Rows
from peft_kernels.targets import compress
from peft_kernels.tuner import AdapterTuner

if TYPE_CHECKING:
    from diffusion_peft.methods.difffit.config import DiffFitConfig


class DiffFitTuner(AdapterTuner):
    """Attaches DiffFit."""

    layer_cls = FitLayer
    places: dict[str, Place]

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        self.places = places(peft_config, self.model)
        self._sources: dict[str, Fit | ClassTable] = {}
        return super()._prepare_adapter_config(peft_config, model_config)

    def default_targets(self, config: DiffFitConfig, model: nn.Module) -> str:
        names = list(self.places)
        if not names and not raw_tensors(config, model):
            raise ValueError(f"{type(model).__name__} has none of what DiffFitConfig trains")
        return compress(model, names) if names else DUMMY_TARGET_MODULES

    def extra_tensors(self, config: DiffFitConfig, model: nn.Module) -> list[str]:
        """Biases, layer scales and tables of shifts and scales that belong to no layer."""
        return raw_tensors(config, model)

    def check_target(self, config: DiffFitConfig, key: str, base: nn.Module) -> None:
        if key not in self.places:
            raise ValueError(
                f"{key!r} ({type(base).__name__}) has nothing that this DiffFitConfig trains: no factor stands on it, "
                "and it has no bias, norm or class table, or these are switched off"
            )
        if any(map(is_fused, self._attention(key))):
            raise ValueError(f"the projections around {key!r} are fused: call unfuse_qkv_projections() first")
        if any(isinstance(module, AdapterLayer) for module in base.modules()):
            raise ValueError(
                f"another adapter trains tensors within {key!r} ({type(base).__name__}), whose classes or positions "
                "this DiffFitConfig changes: delete that adapter first"
            )

    def wrap(self, config: DiffFitConfig, key: str, base: nn.Module) -> AdapterLayer:
        place = self.places[key]
        layer = (SettingsLayer if place.classes or place.positions else FitLayer)(base, self.prefix)
        layer.attention = self._attention(key)
        path, _, leaf = key.rpartition(".net.")
        if path and leaf and forget_hidden(perceptron := self.model.get_submodule(path)):
            layer.when_removed(partial(remember_hidden, perceptron))
        return layer

    def _attention(self, key: str) -> tuple[nn.Module, ...]:
        """The attention that the module called ``key`` is the output of."""
        path, _, leaf = key.rpartition(".to_out.")
        return (self.model.get_submodule(path),) if path and leaf else ()

    def make_adapter(self, config: DiffFitConfig, key: str, base: nn.Module, rows: Rows | None) -> nn.Module:
        place = self.places[key]
        if place.tied_to in self._sources:
            return Tied(self._sources[place.tied_to])
        if place.classes is not None:
            adapter = ClassTable(base, place.classes)
        elif place.positions is not None:
            adapter = Positions(base, place)
        else:
            dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
            adapter = Fit(base, place, config.gamma_shape == "scalar", config.gamma_init, dtype)
        if not config.init_weights:
            adapter.start_at_random()
        self._sources[key] = adapter
        return adapter

    def _unload_and_optionally_merge(
        self, merge: bool = True, progressbar: bool = False, safe_merge: bool = False, adapter_names: Any = None
    ) -> Any:
        configs = [self.peft_config[name] for name in adapter_names or self.active_adapters]
        for config in configs if merge else []:
            check_config(self.model, config.pos_scale)  # type: ignore[attr-defined]
        plain = super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)
        for config in configs if merge else []:
            write_config(plain, config.num_classes, config.pos_scale)  # type: ignore[attr-defined]
        return plain

    def _post_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        super()._post_injection_hook(model, config, adapter_name)
        self._sources = {}
