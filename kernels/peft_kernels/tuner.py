"""The bridge to PEFT: one base tuner under every method, and the registration of a method with PEFT.

PEFT attaches, names, switches, saves and loads. A method supplies `make_adapter`; this tuner resolves what to adapt for
the model's architecture, checks all of it before anything is changed, and undoes a change that fails half-way.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _ExcludedModule, check_target_module_exists
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.integrations import init_empty_weights
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from peft_kernels import slices, targets
from peft_kernels.attaching import all_or_nothing, attach_raw_tensors, raw_tensors
from peft_kernels.collisions import GuardedConfigs, refuse_owner, refuse_targets
from peft_kernels.config import MethodConfig
from peft_kernels.feature import FeatureLayer
from peft_kernels.layer import AdapterLayer
from peft_kernels.reparam import ReparamLayer
from peft_kernels.tensors import CHILD, OwnedTensors, TrainedTensors


class AdapterTuner(BaseTuner):
    """Base of all tuners.

    Attributes:
        prefix: unique prefix of the method's state.
        layer_cls: the layer that wraps a target: `ReparamLayer`, `FeatureLayer` or a subclass.
        target_kind: which default targets of `targets.default_targets` the method takes.
        takes_rows: whether it can adapt row blocks of a fused projection (``"attn.qkv[q,v]"``).
    """

    prefix: str = ""
    tuner_layer_cls = (AdapterLayer, OwnedTensors)  # type: ignore[assignment]
    layer_cls: ClassVar[type[AdapterLayer]] = ReparamLayer
    target_kind: ClassVar[str] = "linear"
    takes_rows: ClassVar[bool] = False

    # --- what a method supplies ------------------------------------------------------------------------------------
    def make_adapter(self, config: Any, key: str, base: nn.Module, rows: slices.Rows | None) -> nn.Module:
        """The new adapter for the module ``base`` called ``key``; ``rows`` are the chosen row blocks, if any."""
        raise NotImplementedError

    def check_target(self, config: Any, key: str, base: nn.Module) -> None:
        """Raise (TypeError, ValueError) if the method cannot adapt the module; called before anything is changed."""

    def default_targets(self, config: Any, model: nn.Module) -> list[str] | str:
        """Names or a regular expression of the modules the method adapts when the user names none."""
        return targets.default_targets(model, self.target_kind)

    def default_modules_to_save(self, config: Any, model: nn.Module) -> list[str]:
        """What is trained in full when the user names nothing: the classifier."""
        return targets.head_names(model)

    def extra_tensors(self, config: Any, model: nn.Module) -> list[str]:
        """Modules and raw parameters that belong to the method itself, beside what the user asks to save."""
        return []

    def decided_fields(self, config: Any, model: nn.Module) -> dict[str, Any]:
        """Further fields that the model's weights decide; ``config`` has its targets and is not changed."""
        return {}

    def layer_class(self, config: Any, base: nn.Module) -> type[AdapterLayer]:
        """The layer class for one target."""
        return self.layer_cls

    def wrap(self, config: Any, key: str, base: nn.Module) -> AdapterLayer:
        """The new layer around one target."""
        return self.layer_class(config, base)(base, self.prefix)

    # --- resolving and checking ------------------------------------------------------------------------------------
    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        config = peft_config.unresolved_copy()
        found = {}
        if config.target_modules is None:
            found["target_modules"] = self.default_targets(config, self.model)
        wanted = config.modules_to_save
        wanted = self.default_modules_to_save(config, self.model) if wanted is None else wanted
        wanted = list(dict.fromkeys([*wanted, *self.extra_tensors(config, self.model)]))
        if wanted != config.modules_to_save:
            found["modules_to_save"] = wanted
        if config.base_model_name_or_path is None:
            found["base_model_name_or_path"] = targets.model_name(self.model)
        targeted = copy.copy(config)
        targeted.__dict__.update(found)
        found |= self.decided_fields(targeted, self.model)
        config.remember_defaults(found)
        refuse_owner(config, self.model, raw_tensors(self.model, config), self._attribute)
        self._check_targets(config)
        if peft_config.resolved and peft_config != config:  # in use on another model, which keeps its object
            name = next(n for n, c in self.peft_config.items() if c is peft_config)
            self.peft_config[name] = config
            return config
        peft_config.__dict__.update(config.__dict__)
        return peft_config

    def _targets(self, config: MethodConfig) -> Iterator[tuple[str, nn.Module]]:
        inside: list[str] = []
        for key, module in self.model.named_modules():
            if not key or any(key.startswith(f"{outer}.") for outer in inside):
                continue
            if isinstance(module, (AdapterLayer, OwnedTensors)):
                inside.append(key)
            found = self._check_target_module_exists(config, key)
            if found and not isinstance(found, _ExcludedModule):
                yield key, module

    def _check_targets(self, config: MethodConfig) -> None:
        if config.target_modules == DUMMY_TARGET_MODULES:
            return
        for target in config.target_modules if isinstance(config.target_modules, list) else []:
            if slices.bare(target) != target and not self.takes_rows:
                raise ValueError(
                    f"{type(config).__name__} adapts whole modules, not row blocks of them: write "
                    f"{slices.bare(target)!r} instead of {target!r}, or take SNELL or sliced LoRA"
                )
        refuse_targets(config, self.model, lambda name: self._check_target_module_exists(config, name), self._attribute)
        for key, module in self._targets(config):
            base = module.base_layer if isinstance(module, AdapterLayer) else module
            self.check_target(config, key, base)
            slices.rows_of(config, key, base)

    @property
    def _attribute(self) -> str:
        return f"{self.prefix}adapter"

    @staticmethod
    def _check_target_module_exists(peft_config: Any, key: str) -> Any:
        if isinstance(peft_config.target_modules, list) and any("[" in t for t in peft_config.target_modules):
            peft_config = copy.copy(peft_config)
            peft_config.target_modules = [slices.bare(t) for t in peft_config.target_modules]
        if key.rpartition(".")[2] == CHILD or f".{CHILD}." in f".{key}.":
            return False
        return check_target_module_exists(peft_config, key)

    # --- attaching -------------------------------------------------------------------------------------------------
    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
    ) -> None:
        with all_or_nothing(self.model, self.peft_config, adapter_name):
            super().inject_adapter(
                model,
                adapter_name,
                autocast_adapter_dtype=autocast_adapter_dtype,
                low_cpu_mem_usage=low_cpu_mem_usage,
                state_dict=state_dict,
            )
            config: Any = self.peft_config[adapter_name]
            with init_empty_weights() if low_cpu_mem_usage else nullcontext():
                attach_raw_tensors(self.model, self.prefix, config, adapter_name, self.active_adapters)

    def _post_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        if not isinstance(self.peft_config, GuardedConfigs):  # two methods on one model share the object
            self.peft_config = GuardedConfigs(self.peft_config, self.model)

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = target if isinstance(target, AdapterLayer) else self.wrap(peft_config, current_key, target)
        base = layer.base_layer
        adapter = self.make_adapter(peft_config, current_key, base, slices.rows_of(peft_config, current_key, base))
        self._warn_if_larger(peft_config, current_key, adapter, base)
        active = self.active_adapters
        like = next((p for p in self.model.parameters() if p.is_floating_point()), None)
        layer.add_adapter(adapter_name, adapter, active, inference_mode=peft_config.inference_mode, like=like)
        if layer is not target:
            layer.train(target.training)
            self._replace_module(parent, target_name, layer, target)

    @staticmethod
    def _warn_if_larger(config: Any, key: str, adapter: nn.Module, base: nn.Module) -> None:
        size = sum(parameter.numel() for parameter in adapter.parameters())
        whole = sum(parameter.numel() for parameter in base.parameters())
        if 0 < whole < size and not isinstance(adapter, TrainedTensors):
            warnings.warn(
                f"the {type(config).__name__} adapter of {key!r} has {size:,} parameters, more than the {whole:,} of "
                "the module it adapts: a smaller rank, or full fine-tuning of this module, does more with less",
                stacklevel=2,
            )

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)

    def train(self, mode: bool = True) -> AdapterTuner:
        """Training mode for the model, but frozen batch norms keep their statistics: they belong to the base model."""
        super().train(mode)
        trained: set[nn.Module] = set()
        for module in self.modules():
            if isinstance(module, AuxiliaryTrainingWrapper):
                trained.update(module.modules())
            elif isinstance(module, AdapterLayer):
                trained.update(module.adapters.modules())
            elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module not in trained:
                module.eval()
        return self

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:  # PEFT would drop it without a word
            raise ValueError(
                f"{type(self).__name__} cannot mix adapters within one batch (`adapter_names`): run one batch per "
                "adapter, or activate several adapters at once with `set_adapter([...])`"
            )
        yield

    # --- merging and unloading -------------------------------------------------------------------------------------
    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        if merge:  # all of it before anything is taken apart
            self.merge_adapter(adapter_names, safe_merge)
        for module in list(self.model.modules()):
            if isinstance(module, OwnedTensors):
                module.detach()
        plain: Any = super()._unload_and_optionally_merge(False, progressbar)
        while any(isinstance(module, BaseTunerLayer) for module in plain.modules()):  # those inside an adapted block
            plain = super()._unload_and_optionally_merge(False, progressbar)
        return plain

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge the named (default: active) adapters; if one module refuses, none is merged.

        Raises:
            ValueError: with ``safe_merge``, a merged tensor would hold NaN or infinity.
            NotImplementedError: an adapter cannot be merged; the message gives the reason.
        """
        layers = [m for m in self.model.modules() if isinstance(m, (AdapterLayer, OwnedTensors))]
        for layer in layers:
            if isinstance(layer, FeatureLayer):
                layer.merge(adapter_names=adapter_names)  # refuses, with the reason, before anything is merged
        before = [list(layer.merged_adapters) for layer in layers]
        try:
            super().merge_adapter(adapter_names, safe_merge)
        except BaseException:
            for layer, names in zip(layers, before, strict=True):
                if layer.merged_adapters != names:
                    layer.unmerge()
                    if names:
                        layer.merge(adapter_names=names)
            raise

    # --- names in saved files --------------------------------------------------------------------------------------
    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        attribute = f".{cls.prefix}adapter."
        named = f"{attribute}{adapter_name}."
        if named in f".{key}":
            return f".{key}".replace(named, attribute, 1)[1:]
        return super()._remove_adapter_name_from_key(key, adapter_name)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for module in self.model.modules():
            if isinstance(module, OwnedTensors):
                module.refresh()
