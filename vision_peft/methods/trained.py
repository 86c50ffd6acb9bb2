"""The ends of the scale and BitFit: methods that train tensors of the model as they are.

Full fine-tuning trains all of them, BitFit (Ben Zaken, Ravfogel, Goldberg: "BitFit", ACL 2022, arXiv 2106.10199) those
whose last name part is ``bias``, the linear probe only the classifier. The trained copies are the adapter, so that the
base model can be switched back, saved beside and merged like with any other method.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn

from peft_kernels.config import MethodConfig
from peft_kernels.owners import own_tensors, tensor_owners
from peft_kernels.registry import register
from peft_kernels.slices import Rows
from peft_kernels.targets import compress, head_names, plain_modules, raw_parameters
from peft_kernels.tensors import TrainedTensors
from peft_kernels.tuner import AdapterTuner


def _own(module: nn.Module, only_bias: bool) -> list[str]:
    """Dotted names of the tensors a module is adapted by."""
    named = own_tensors(module).items()
    return [n for n, p in named if not only_bias or (n.rpartition(".")[2].endswith("bias") and p.ndim == 1)]


def _owners(model: nn.Module, only_bias: bool) -> list[str]:
    """Modules that have such tensors."""
    return [name for name, module in tensor_owners(model) if _own(module, only_bias)]


class _TrainedTuner(AdapterTuner):
    only_bias = False

    def check_target(self, config: Any, key: str, base: nn.Module) -> None:
        if not _own(base, self.only_bias):
            raise ValueError(
                f"{key!r} ({type(base).__name__}) has no {'bias' if self.only_bias else 'parameter'} to train"
            )

    def make_adapter(self, config: Any, key: str, base: nn.Module, rows: Rows | None) -> TrainedTensors:
        return TrainedTensors(base, _own(base, self.only_bias), config.init_weights)


class FullTuner(_TrainedTuner):
    """Trains copies of all parameters; batch norms are copied whole, with their statistics."""

    def default_targets(self, config: FullConfig, model: nn.Module) -> str:
        norms = set(self._batch_norms(model))
        return compress(model, [name for name in _owners(model, False) if name not in norms])

    def default_modules_to_save(self, config: FullConfig, model: nn.Module) -> list[str]:
        if config.target_modules is not None:  # the rest of the model was not asked for
            return super().default_modules_to_save(config, model)
        owners = _owners(model, False)
        return [*self._batch_norms(model), *raw_parameters(model, owners)]

    @staticmethod
    def _batch_norms(model: nn.Module) -> list[str]:
        return [n for n, m in plain_modules(model) if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@register(
    "full",
    tuner=FullTuner,
    prefix="fulltune_",
    family="vision",
    summary="Full fine-tuning: every parameter is trained",
)
@dataclass
class FullConfig(MethodConfig):
    """Full fine-tuning as an adapter: trained copies of every parameter beside the frozen ones.

    ViT-B/16: 85,798,656 parameters without the head. The original stays in memory (one more copy of the model than
    training in place), which is what lets it be switched back, compared and saved like every other method.
    """


class BitFitTuner(_TrainedTuner):
    """Trains copies of the biases."""

    only_bias = True

    def default_targets(self, config: BitFitConfig, model: nn.Module) -> str:
        heads = tuple(f"{h}." for h in head_names(model))
        modules = dict(plain_modules(model))
        names = [
            name
            for name in _owners(model, True)
            if not f"{name}.".startswith(heads) and not self._left_out(config, name, modules[name])
        ]
        if not names:
            raise ValueError(f"{type(model).__name__} has no biases outside its classifier to train")
        return compress(model, names)

    @staticmethod
    def _left_out(config: BitFitConfig, name: str, module: nn.Module) -> bool:
        norm = isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm))
        return (norm and not config.include_norm_bias) or ("patch_embed." in name and not config.include_patch_bias)

    def extra_tensors(self, config: BitFitConfig, model: nn.Module) -> list[str]:
        """Biases that attention modules hold themselves (``q_bias``, ``v_bias`` of EVA, BEiT, Swin V2)."""
        raw = raw_parameters(model, _owners(model, False))
        return [n for n in raw if n.endswith("bias") and model.get_parameter(n).ndim == 1]


@register(
    "bitfit",
    tuner=BitFitTuner,
    prefix="bitfit_",
    family="vision",
    summary="Train the biases alone; folds away",
    paper="Ben Zaken et al., ACL 2022",
)
@dataclass
class BitFitConfig(MethodConfig):
    """BitFit: only tensors whose last name part is ``bias`` are trained, and the head.

    ViT-B/16: 102,912 parameters without the head. Models without some biases (``qkv_bias=False``) have fewer. Tables
    such as Swin's ``relative_position_bias_table`` are no biases.

    Args:
        include_norm_bias: whether the biases of normalisation layers are trained.
        include_patch_bias: whether the bias of the patch embedding is trained.
    """

    include_norm_bias: bool = field(default=True, metadata={"help": "Train the biases of norm layers."})
    include_patch_bias: bool = field(default=True, metadata={"help": "Train the bias of the patch embedding."})


class LinearProbeTuner(AdapterTuner):
    """Trains the classifier on frozen features: the backbone stays in evaluation mode."""

    def default_targets(self, config: LinearProbeConfig, model: nn.Module) -> str:
        return DUMMY_TARGET_MODULES  # PEFT's word for an adapter without layers

    def _check_targets(self, config: LinearProbeConfig) -> None:
        if config.target_modules != DUMMY_TARGET_MODULES:
            raise ValueError(
                "a linear probe adapts no modules: name what it trains in `modules_to_save`; "
                f"found target_modules={config.target_modules!r}"
            )

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        config: Any = self.peft_config[adapter_name]
        if not config.init_weights:
            for module in self.model.modules():
                if isinstance(module, ModulesToSaveWrapper):
                    for parameter in module.modules_to_save[adapter_name].parameters():
                        parameter.data += torch.randn_like(parameter) * (0.1 + parameter.data.abs())

    def delete_adapter(self, adapter_name: str) -> None:
        left = [name for name in self.active_adapters if name != adapter_name]
        super().delete_adapter(adapter_name)
        if left:  # PEFT asks the layers which adapters stay active; there are none
            self.set_adapter(left)

    def default_modules_to_save(self, config: LinearProbeConfig, model: nn.Module) -> list[str]:
        heads = head_names(model)
        if not heads:
            raise ValueError(
                f"{type(model).__name__} does not tell its classifier: name it in `modules_to_save`, e.g. ['head']"
            )
        return heads

    def train(self, mode: bool = True) -> LinearProbeTuner:
        super().train(mode)
        self.model.eval()
        for module in self.model.modules():
            if isinstance(module, AuxiliaryTrainingWrapper):
                module.train(mode)
        return self


@register(
    "linear_probe",
    tuner=LinearProbeTuner,
    prefix="probe_",
    family="vision",
    summary="Train the classifier on frozen features",
)
@dataclass
class LinearProbeConfig(MethodConfig):
    """Linear probe: the classifier alone is trained; dropout and stochastic depth of the backbone stay off."""
