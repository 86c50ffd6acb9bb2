"""The file of an adapter against what a model expects of it: which keys match, which shapes and types fit.

The messages say what a person needs to find the mistake: file, key, found and expected, the share that matched, and
the model that the adapter was trained on.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from peft import PeftConfig, PeftModel
from torch import Tensor, nn

from peft_kernels import targets
from peft_kernels.adapter_files import AdapterError
from peft_kernels.adapter_tensors import TensorInfo, group_of, suits
from peft_kernels.config import nearest

_TIMM = "timm_model"  # where transformers' wrapper holds the model


@dataclass(frozen=True)
class Expected:
    """What the file of an adapter must hold for one model.

    Attributes:
        tensors: tensors by their keys in the file, on the meta device where they come from a copy of the model.
        limits: for integer tensors, what every index must stay below.
        ascending: integer tensors whose indices must ascend, each once.
    """

    tensors: dict[str, Tensor]
    limits: dict[str, int]
    ascending: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Match:
    """The keys of a file against those expected.

    Attributes:
        matched: keys that are expected, with shape and type that fit.
        misfits: expected keys whose shape or type does not fit.
        missing: expected keys that the file does not have.
        unexpected: keys of the file that nothing expects.
    """

    matched: list[str]
    misfits: list[str]
    missing: list[str]
    unexpected: list[str]

    @property
    def share(self) -> float:
        """The share of all keys, of the file and expected, that match."""
        return len(self.matched) / max(1, sum(map(len, (self.matched, self.misfits, self.missing, self.unexpected))))


def match(expected: Mapping[str, Tensor], infos: Mapping[str, TensorInfo]) -> Match:
    """Compare a file's header with what is expected."""
    common = [key for key in expected if key in infos]
    fits = {key: infos[key].shape == tuple(expected[key].shape) and suits(infos[key], expected[key]) for key in common}
    return Match(
        [key for key in common if fits[key]],
        [key for key in common if not fits[key]],
        [key for key in expected if key not in infos],
        [key for key in infos if key not in expected],
    )


def check_fit(
    expected: Expected,
    infos: Mapping[str, TensorInfo],
    source: str,
    model: nn.Module,
    config: PeftConfig,
    strict: bool = True,
) -> None:
    """Raise unless the file ``source`` fits.

    Raises:
        AdapterError: a tensor has another shape or type, no key matches, or (with ``strict``) some do not.
    """
    found = match(expected.tensors, infos)
    share = f"{len(found.matched)} of {len(infos)} tensors in the file match, {found.share:.0%} of all keys"
    for key in found.misfits:
        tensor, info = expected.tensors[key], infos[key]
        if info.shape != tuple(tensor.shape):
            text = f"{key!r} has shape {info.shape}, expected {tuple(tensor.shape)}"
            hint = _head_hint(model, found, infos)
            raise AdapterError(f"{source} is for another model: {text} ({trained_on(config, model)}{share}){hint}")
        raise AdapterError(f"{source}: {key!r} has type {info.dtype}, expected {group_of(tensor)}")
    if not found.missing and not found.unexpected:
        return
    parts = []
    if found.missing:
        hint = nearest(found.missing[0], found.unexpected[:1000])
        parts.append(f"{len(found.missing)} expected tensors are missing, first {found.missing[0]!r}{hint}")
    if found.unexpected:
        parts.append(f"{len(found.unexpected)} in the file are unexpected, first {found.unexpected[0]!r}")
    text = f"{'; '.join(parts)} ({trained_on(config, model)}{share})"
    if strict or not found.matched:
        raise AdapterError(f"{source} does not fit {describe(model)}: {text}")
    warnings.warn(f"{source}: {text}", stacklevel=3)


def check_wrapper(infos: Mapping[str, TensorInfo], source: str, model: nn.Module) -> None:
    """Raise if the file's adapter is for transformers' wrapper of timm models and ``model`` is bare, or the other way.

    Raises:
        AdapterError: with what to load it into.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    inside = [key.startswith(f"base_model.model.{_TIMM}.") for key in infos]
    wrapped = _TIMM in dict(base.named_children())  # type: ignore[union-attr]
    if all(inside) and inside and not wrapped:
        raise AdapterError(
            f"{source} was trained inside transformers' TimmWrapperForImageClassification, which holds the timm model "
            f"as `{_TIMM}`; this is a bare {describe(model)}: load it into the wrapper, and merge it there for a bare "
            "model"
        )
    if not any(inside) and wrapped:
        raise AdapterError(
            f"{source} was trained on a bare timm model; this is {describe(model)}, which holds one as `{_TIMM}`: "
            f"load it into `model.{_TIMM}`"
        )


def trained_on(config: PeftConfig, model: nn.Module) -> str:
    """``trained on 'x', this model is 'y'; `` where the configuration tells another model's name or class."""
    trained, here = config.base_model_name_or_path, targets.model_name(model)
    if not (trained and here and trained != here):
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        trained, here = (config.auto_mapping or {}).get("base_model_class"), type(base).__name__  # type: ignore[union-attr]
    return f"trained on {trained!r}, this model is {here!r}; " if trained and trained != here else ""


def _head_hint(model: nn.Module, found: Match, infos: Mapping[str, TensorInfo]) -> str:
    """Where nothing but the classifier differs, what to do about it."""
    heads = [f".{name}." for name in targets.head_names(model)]
    if heads and all(any(head in f".{key}" for head in heads) for key in found.misfits):
        return f": create the model with num_classes={infos[found.misfits[0]].shape[0]}"
    return ""


def describe(model: nn.Module) -> str:
    """The model's class, and the name it was created under where it tells."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    name = targets.model_name(model)
    return f"{type(base).__name__} {name!r}" if name else type(base).__name__
