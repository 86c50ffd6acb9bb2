"""What methods of point clouds read beside tokens: the patches' centres, once a forward pass, for all layers."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from peft_kernels.context import SideInputs, graph_break
from peft_kernels.targets import find_backbone

CLOUD = "cloud"


def point_backbone(model: nn.Module, method: str) -> tuple[str, Any]:
    """The path and the module of the point transformer in ``model``.

    Raises:
        ValueError: there is none; the message names ``method``.
    """
    found = find_backbone(model)
    if found is None or not hasattr(found[1], "group_divider"):
        raise ValueError(
            f"{method} reads the centres of a point transformer's patches, and {type(model).__name__} has "
            "none: take a model such as point_mae or point_gpt_l"
        )
    return found[0], found[1]


def token_names(path: str, backbone: nn.Module) -> list[str]:
    """The class token and its position, of classifiers, by their names in the model."""
    prefix = f"{path}." if path else ""
    return [f"{prefix}{name}" for name in ("cls_token", "cls_pos") if name in backbone._parameters]


class PatchSource:
    """Makes a value of the patches of every forward pass, which layers read; also when blocks are computed again.

    Args:
        backbone: a point transformer, whose ``group_divider`` gives patches and centres.
        blocks: what checkpointing may call again.
    """

    def __init__(self, backbone: Any, blocks: Iterable[nn.Module]) -> None:
        self.side = SideInputs()
        self.handles = self.side.attach(backbone, segments=blocks)
        self.handles.append(backbone.group_divider.register_forward_hook(self._read))

    def value(self, patches: Tensor, centers: Tensor) -> Any:
        """What layers read, of patches ``[B, G, k, 3]`` around ``centers`` ``[B, G, 3]``."""
        raise NotImplementedError

    @graph_break
    def _read(self, module: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> None:
        with suppress(LookupError):  # called by itself, outside of a forward pass: nothing will read it
            self.side.put(CLOUD, self.value(*output))

    def cloud(self) -> Any:
        """The value of the forward pass that runs, or is computed again.

        Raises:
            ValueError: there is none, since a part of the model is called by itself.
        """
        try:
            return self.side.get(CLOUD)
        except LookupError as error:
            raise ValueError(
                "an adapter reads the patches of the cloud that passes through the whole model, and found none: "
                f"expected a call of the model or its `forward_features`, not of a part ({error})"
            ) from error

    def detach(self) -> None:
        """Take the hooks out of the model."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
