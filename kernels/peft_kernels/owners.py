"""Which modules own tensors: those without children; an attention module of torch counts as one."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from peft_kernels.targets import plain_modules


def own_tensors(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters a module is adapted by, by dotted name: its own, of an attention module its projection's too."""
    return dict(module.named_parameters(recurse=isinstance(module, nn.MultiheadAttention)))


def tensor_owners(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of ``model`` below its root that own tensors, under their names before anything was adapted."""
    outer: tuple[str, ...] = ()
    for name, module in plain_modules(model):
        whole = isinstance(module, nn.MultiheadAttention)
        if whole:
            outer += (f"{name}.",)
        elif any(True for _ in module.children()) or name.startswith(outer):
            continue
        if name and own_tensors(module):
            yield name, module
