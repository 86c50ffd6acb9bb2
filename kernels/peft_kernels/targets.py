"""Which modules a method adapts by default, per architecture family (`families`).

A family is recognised by the class name of the backbone (no model library is imported), also inside a wrapper such as
transformers' ``TimmWrapperForImageClassification``. Patterns are regular expressions over whole module names, relative
to the backbone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from peft_kernels.families import FAMILIES, Family


def plain_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """``model.named_modules()`` as it was before anything was adapted: base modules under their own names."""
    seen: set[nn.Module] = set()

    def walk(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        while isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            inner = "base_layer" if isinstance(module, BaseTunerLayer) else "original_module"
            if inner not in module._modules:
                return  # trained copies of raw parameters
            module = module.get_submodule(inner)
        if module not in seen:
            seen.add(module)
            yield path, module
            for name, child in module.named_children():
                yield from walk(f"{path}.{name}" if path else name, child)

    return walk("", model)


def find_backbone(model: nn.Module) -> tuple[str, nn.Module, Family] | None:
    """The outermost submodule of a known family: its path (``""`` for the model itself), the module, the family."""
    for path, module in plain_modules(model):
        names = {cls.__name__ for cls in type(module).__mro__}
        for family in FAMILIES.values():
            if names & set(family.classes):
                return path, module, family
    return None


def default_targets(model: nn.Module, kind: str) -> str:
    """What ``kind`` (a field of `Family`: ``linear``, ``qkv``, ``block``, ...) means for ``model``.

    A regular expression over module names; for an unknown family it matches all modules of that kind outside the head.

    Raises:
        ValueError: nothing of that kind can be found, or the family has none (no ``qkv`` in a convolutional network);
            ``target_modules`` has to be given.
    """
    found = find_backbone(model)
    pattern = getattr(found[2], kind, None) if found else None
    if found and not pattern:
        raise ValueError(
            f"{type(found[1]).__name__} has no {kind} modules, which this method adapts by default: give "
            "`target_modules`, or take a method for its other layers"
        )
    names = _by_type(model, kind)
    if found and pattern:
        matching = re.compile((re.escape(f"{found[0]}.") if found[0] else "") + f"({pattern})")
        idle = idle_queries(model)
        chosen = [n for n, m in plain_modules(model) if matching.fullmatch(n) and _suits(m, kind) and n not in idle]
        names = chosen or names
    if not names:
        raise ValueError(
            f"no default {kind} targets are known for {type(model).__name__}: give `target_modules` "
            f"(families with defaults: {', '.join(FAMILIES)})"
        )
    return compress(model, names)


def compress(model: nn.Module, names: list[str]) -> str:
    """A regular expression that matches exactly these modules of ``model``.

    Numbers, or all but the last of a name, are left open where that adds nothing. A list would not do: PEFT takes its
    entries as suffixes, so that ``"norm"`` also means ``patch_embed.norm``.
    """
    wanted = set(names)
    others = [name for name, _ in plain_modules(model) if name not in wanted]
    harmless: dict[str, bool] = {}
    forms = []
    for name in names:
        exact = re.escape(name)
        for form in (re.sub(r"\d+", r"\\d+", exact), re.sub(r"\d+(?=\D.*\d)", r"\\d+", exact), exact):
            if form not in harmless:
                pattern = re.compile(form)
                harmless[form] = not any(pattern.fullmatch(other) for other in others)
            if harmless[form]:
                forms.append(form)
                break
    return "|".join(dict.fromkeys(forms))


_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
_TYPES: dict[str, tuple[type[nn.Module], ...]] = {
    "linear": (nn.Linear, nn.modules.conv._ConvNd),
    "qkv": (nn.Linear,),
    "dynamic": (nn.Linear, nn.Conv2d),
    "affine": (nn.Linear, nn.modules.conv._ConvNd, *_NORMS),
    "norm": (*_NORMS, nn.RMSNorm),
}


def _suits(module: nn.Module, kind: str) -> bool:
    """Whether a module that a pattern names is of the kind: placeholders (`nn.Identity`) and poolings are not."""
    return isinstance(module, _TYPES[kind]) if kind in _TYPES else any(True for _ in module.parameters())


def idle_queries(model: nn.Module) -> set[str]:
    """The text's query projections of a last joint attention (SD3), whose output for the text nothing reads."""
    last = [name for name, module in plain_modules(model) if getattr(module, "context_pre_only", None) is True]
    return {f"{name}.add_q_proj" for name in last}


def _by_type(model: nn.Module, kind: str) -> list[str]:
    if kind not in _TYPES:
        return []
    kinds = (nn.Linear,) if kind == "linear" else _TYPES[kind]
    heads = tuple(f"{head}." for head in head_names(model))
    return [n for n, m in plain_modules(model) if isinstance(m, kinds) and not f"{n}.".startswith(heads)]


def head_names(model: nn.Module) -> list[str]:
    """The classifier modules that have parameters, as the model's own ``pretrained_cfg`` names them."""
    names = []
    for path, module in plain_modules(model):
        cfg: Any = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
        classifier = cfg.get("classifier") if isinstance(cfg, dict) else getattr(cfg, "classifier", None)
        for name in (classifier,) if isinstance(classifier, str) else classifier or ():
            full = f"{path}.{name}" if path else name
            try:
                head = model.get_submodule(full)
            except AttributeError:
                continue
            if any(True for _ in head.parameters()):
                names.append(full)
        if names:
            break
    return names


def reads_own_weight(model: nn.Module, key: str) -> bool:
    """Whether the module is a fused projection whose weight its attention module reads itself, adding own biases."""
    path, _, leaf = key.rpartition(".")
    owner = model.get_submodule(path) if path else model
    return leaf == "qkv" and getattr(owner, "q_bias", None) is not None


def raw_parameters(model: nn.Module, covered: Iterable[str]) -> list[str]:
    """Names of the parameters that belong to none of the modules named in ``covered``."""
    prefixes = tuple(f"{name}." for name in covered)
    owned = (
        (path, name) for path, module in plain_modules(model) for name, _ in module.named_parameters(recurse=False)
    )
    names = [f"{path}.{name}" if path else name for path, name in owned]
    return [name for name in names if not name.startswith(prefixes)]


def model_name(model: nn.Module) -> str | None:
    """The name a model was created or loaded under, where it tells (timm's ``architecture.tag``)."""
    found = find_backbone(model)
    cfg: Any = getattr(found[1] if found else model, "pretrained_cfg", None)
    if cfg is None:  # transformers' models and diffusers'
        return getattr(model, "name_or_path", None) or getattr(getattr(model, "config", None), "_name_or_path", None)
    architecture = cfg.get("architecture") if isinstance(cfg, dict) else getattr(cfg, "architecture", None)
    tag = cfg.get("tag") if isinstance(cfg, dict) else getattr(cfg, "tag", None)
    return f"{architecture}.{tag}" if architecture and tag else architecture
