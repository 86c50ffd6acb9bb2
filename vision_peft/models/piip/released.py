"""Names of the authors' checkpoints in this model, so that what they released can be loaded."""

from __future__ import annotations

import re
from typing import Any

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
    own = model.state_dict()
    common = [name for name in found if name in own]
    other = [name for name in common if found[name].shape != own[name].shape and "head" not in name]
    if not common or other:
        what = (
            f"{other[0]} is {list(found[other[0]].shape)} there and {list(own[other[0]].shape)} here"
            if other
            else f"none of its {len(found)} tensors is here, the first being {next(iter(found), 'none')}"
        )
        raise ValueError(f"the checkpoint is of another pyramid than {_described(model)}: {what}")
    return found


def _described(model: Any) -> str:
    layout = model.layout
    sizes = ", ".join(f"{name} at {h}×{w}" for name, (h, w) in zip(layout.names, layout.sizes, strict=True))
    return f"{sizes} with {layout.count} segments"
