"""Names of the authors' checkpoints in this model, so that what they released can be loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from torch import Tensor, nn

RENAMED = (
    (r"^(merge_branch\d+\.|w\d+$)", r"merge.\1"),
    (r"^(branch\d+\.blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma"),
    (r"(_injector)\.(ca|cffn)_weight$", r"\1.\2_gamma"),  # their LLaVA code avoids the word gamma
)


def released_name(name: str) -> str:
    """The name here of a tensor of the authors' checkpoints; names of this model stay."""
    for pattern, new in RENAMED:
        name = re.sub(pattern, new, name)
    return name


def checkpoint_filter_fn(state: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """A checkpoint of this model or of the authors' as this model's state.

    Raises:
        ValueError: the checkpoint is of another pyramid.
    """
    for wrapper in ("state_dict", "model", "module"):
        state = state[wrapper] if isinstance(state.get(wrapper), dict) else state
    found = {released_name(name): value for name, value in state.items()}
    if not found.keys() & model.state_dict().keys():
        first = next(iter(found), "none")
        _refuse(model, f"none of its {len(found)} tensors is here, the first being {first}")
    check_shapes(found, model)
    return found


def check_shapes(state: Mapping[str, Any], model: nn.Module) -> None:
    """Raise a ValueError where the state is of another pyramid; classifiers may have other classes."""
    own = model.state_dict()
    for name in (name for name in state if name in own and "head" not in name):
        if state[name].shape != own[name].shape:
            _refuse(model, f"{name} is {list(state[name].shape)} there and {list(own[name].shape)} here")


def before_loading(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Give the authors' tensors their names here, in place, and look whether the state is of this pyramid."""
    for name in [name for name in state if name.startswith(prefix)]:
        state[prefix + released_name(name.removeprefix(prefix))] = state.pop(name)
    check_shapes({name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}, model)


def check_parts(state: Iterable[str], model: nn.Module) -> None:
    """Raise a ValueError where a state has other branches or interactions."""
    there, here = _parts(state), _parts(model.state_dict())
    if any(there) and there != here:
        _refuse(model, "it has {} branches and {} interactions, this one {} and {}".format(*there, *here))


def _parts(names: Iterable[str]) -> tuple[int, int]:
    """How many branches and interactions have tensors of these names."""
    starts = {found[0] for found in (re.match(r"branch\d+|interactions\.\d+", name) for name in names) if found}
    branches = sum(start.startswith("branch") for start in starts)
    return branches, len(starts) - branches


def _refuse(model: nn.Module, what: str) -> NoReturn:
    raise ValueError(f"the checkpoint is of another pyramid than {_described(model)}: {what}")


def _described(model: Any) -> str:
    layout = model.layout
    sizes = ", ".join(f"{name} at {h}×{w}" for name, (h, w) in zip(layout.names, layout.sizes, strict=True))
    return f"{sizes} with {layout.count} segments"
