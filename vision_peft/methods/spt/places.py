"""Which tensors of a model SPT may train: whole tensors, and the row blocks of fused projections each by itself.

A tensor is a matrix or a vector by its number of dimensions and its module's type, never by its name.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peft.tuners.tuners_utils import _ExcludedModule
from torch import nn

from peft_kernels.layer import AdapterLayer
from peft_kernels.owners import own_tensors
from peft_kernels.slices import rows_of
from peft_kernels.targets import find_backbone, head_names
from peft_kernels.tensors import CHILD
from peft_kernels.tuner import AdapterTuner

if TYPE_CHECKING:
    from vision_peft.methods.spt.config import SptConfig


@dataclass(frozen=True)
class Place:
    """A tensor, or a row block of a fused one, that SPT may train.

    Attributes:
        name: as plans have it, such as ``blocks.0.attn.qkv.v.weight``.
        module: the module that is wrapped for it; ``None`` for a raw parameter, which is trained whole or not at all.
        tensor: its name within the module.
        block: the row block, ``""`` if it is the whole tensor.
        start: first row in the tensor.
        shape: its own shape.
        parameter: the parameter's name in the model.
        is_matrix: whether a module of ``structured`` can stand on it: linear layers and ungrouped convolutions.
    """

    name: str
    module: str | None
    tensor: str
    block: str
    start: int
    shape: tuple[int, ...]
    parameter: str
    is_matrix: bool

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.shape[0] * self.columns

    @property
    def columns(self) -> int:
        """Entries of one row."""
        columns = 1
        for side in self.shape[1:]:
            columns *= side
        return columns

    def carries(self, r: int) -> bool:
        """Whether a module of rank r is no wider than the matrix."""
        return r <= min(self.shape[0], self.columns)

    def cost(self, structured: str, r: int) -> int:
        """Parameters of a module of rank r: ``r (out + in)`` for LoRA, ``2 r out + r + out`` for an adapter."""
        rows = self.shape[0]
        return r * (rows + self.columns) if structured == "lora" else 2 * r * rows + r + rows


def places(model: nn.Module, config: SptConfig) -> dict[str, Place]:
    """All tensors that ``config`` lets SPT train in ``model``, in the model's order.

    Left out are the classifier and what ``exclude`` names; with ``target_modules`` given, all that it does not name.
    """
    found = find_backbone(model)
    root = f"{found[0]}." if found and found[0] else ""
    excluded = tuple(f"{name}." for name in (*head_names(model), *(root + part for part in config.excluded)))
    made: dict[str, Place] = {}
    for key, module, real in _modules(model):
        if f"{key}.".startswith(excluded) or not _targeted(config, key):
            continue
        for place in module_places(config, key, module, real):
            made[place.name] = place
    for name, parameter in _raw(model):
        if parameter.ndim == 1 and not f"{name}.".startswith(excluded) and config.target_modules is None:
            made[name] = Place(name, None, name, "", 0, tuple(parameter.shape), name, False)
    return made


def module_places(config: SptConfig, key: str, module: nn.Module, real: str | None = None) -> list[Place]:
    """The candidates that one module holds; ``real`` is its name where an adapter stands around it."""
    tensors = _own(module)
    fused = [name for name in tensors if name in ("weight", "in_proj_weight")]
    blocks = rows_of(config, key, module) if fused else None
    convolution = isinstance(module, nn.modules.conv._ConvNd)
    matrix = isinstance(module, nn.Linear) or (convolution and module.groups == 1)
    # A fused projection is q.weight, q.bias, k.weight, ...: the order in which separate modules would come.
    whole = {"": (0, None)}
    made = []
    for block, (start, stop) in (blocks or whole).items():
        for name, tensor in tensors.items():
            if blocks and name not in ("weight", "bias", "in_proj_weight", "in_proj_bias"):
                continue
            shape = (len(tensor) if stop is None else stop - start, *tensor.shape[1:])
            label = ".".join(part for part in (key, block, name) if part)
            parameter = f"{key if real is None else real}.{name}"
            made.append(Place(label, key, name, block, start, shape, parameter, matrix and name == "weight"))
    return made


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Modules that own tensors and have no children (an attention module counts as one): key, module, its real name."""
    outer: list[str] = []
    for key, module in model.named_modules():
        if key.startswith(tuple(f"{name}." for name in outer)) or f".{CHILD}." in f".{key}.":
            continue
        real = key
        if isinstance(module, AdapterLayer):
            module, real = module.base_layer, f"{key}.base_layer"
            outer.append(key)
        elif isinstance(module, nn.MultiheadAttention):
            outer.append(key)
        elif any(True for _ in module.children()):
            continue
        if key and _own(module):
            yield key, module, real


def _own(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in own_tensors(module).items() if p.is_floating_point()}


def _raw(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that modules with children hold themselves: ConvNeXt's ``gamma``, tokens, tables."""
    for key, module in model.named_modules():
        inside = isinstance(module, (nn.MultiheadAttention, AdapterLayer)) or f".{CHILD}." in f".{key}."
        if not inside and any(True for _ in module.children()):
            for name, parameter in module.named_parameters(recurse=False):
                yield (f"{key}.{name}" if key else name), parameter


def _targeted(config: SptConfig, key: str) -> bool:
    if config.target_modules is None and config.exclude_modules is None:
        return True
    asked = copy.copy(config)
    if asked.target_modules is None:
        asked.target_modules = ".*"
    found = AdapterTuner._check_target_module_exists(asked, key)
    return bool(found) and not isinstance(found, _ExcludedModule)


def always_trained(model: nn.Module, config: SptConfig) -> list[str]:
    """The raw parameters that are trained whole outside the selection: by default the class token."""
    if config.always_train is not None:
        return list(config.always_train)
    found = find_backbone(model)
    if found is None or found[1]._parameters.get("cls_token") is None:
        return []
    return [f"{found[0]}.cls_token" if found[0] else "cls_token"]


def always_count(model: nn.Module, config: SptConfig) -> int:
    """Parameters of `always_trained`."""
    return sum(model.get_parameter(name).numel() for name in always_trained(model, config))


def check_rank(r: int, place: Place) -> None:
    """Raise a ValueError if a module of rank r would be wider than the matrix."""
    if not place.carries(r):
        raise ValueError(f"rank {r} exceeds the smaller side of {place.name!r} ({place.shape[0]} × {place.columns})")
