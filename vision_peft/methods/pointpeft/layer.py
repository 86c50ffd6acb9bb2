"""A block with Point-PEFT around its parts, and what it reads of each cloud."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from torch import Tensor

from peft_kernels.feature import FeatureLayer
from peft_kernels.tokens import put_in
from vision_peft.methods.patches import PatchSource
from vision_peft.methods.pointpeft.adapter import PointPeft, Shared
from vision_peft.methods.pointpeft.geometry import Neighbourhoods, neighbourhoods
from vision_peft.methods.pointpeft.memory import memory_tokens, patch_features

GIVEN = "given features"


class Cloud(NamedTuple):
    """What one adapter reads of a pass's clouds: neighbourhoods without and with prompts, tokens of the memory."""

    plain: Neighbourhoods
    prompted: Neighbourhoods | None
    recalled: Tensor | None


class PointPeftLayer(FeatureLayer):
    """A block of timm's, with the parts of Point-PEFT; with several adapters their changes of its output add up.

    With ``E`` prompts, ``x₁ = [x, E] + Attn(LN₁ [x, E])``, ``m = DP(MLP(LN₂ x₁))``, ``x₂ = x₁ + m + 0.7 Ad(m)``: the
    tokens of patches get 0.3 of what the neighbourhoods of ``x₂`` give, and ``x ← x + Ad₁(x)`` of all but ``E``.
    """

    source: PointPeftSource

    def adapted_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        names = [name for name in self.active_adapters if name in self.adapters]
        if len(names) == 1 and self.scaling[names[0]] == 1:
            return self._with(names[0], x)
        plain = self.base_layer(x)
        return plain + sum(self.scaling[name] * (self._with(name, x) - plain) for name in names)

    def _with(self, name: str, x: Tensor) -> Tensor:
        block: Any = self.base_layer
        adapter, shared = cast(PointPeft, self.adapters[name]), self.source.shared(name)
        cloud: Cloud = self.source.cloud()[name]
        at, around = x.shape[1] - cloud.plain.weights.shape[1], cloud.plain
        if adapter.prompt is not None:
            assert cloud.prompted is not None
            x, around = put_in(x, adapter.prompts(len(x), cloud.recalled).to(x.dtype), at, 1), cloud.prompted
        x = x + block.ls1(block.attn(block.norm1(x)))
        change = block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
        dtype = adapter.behind.up.weight.dtype
        own = (x + change).to(dtype) + adapter.scale * adapter.beside(change.to(dtype))
        return adapter.behind_block(shared, own, at, around).to(x.dtype)

    def detach(self) -> None:
        super().detach()
        self.source.detach()


class PointPeftSource(PatchSource):
    """What the layers of one model read of each cloud.

    Args:
        backbone: the point transformer.
        layers: its adapted blocks, in order.
    """

    def __init__(self, backbone: Any, layers: Sequence[PointPeftLayer]) -> None:
        super().__init__(backbone, layers)
        self.backbone, self.layers = backbone, layers

    def shared(self, name: str) -> Shared:
        """What the blocks of the adapter ``name`` share."""
        found = (cast(PointPeft, layer.adapters[name]).shared for layer in self.layers if name in layer.adapters)
        return next(shared for shared in found if shared is not None)

    def value(self, patches: Tensor, centers: Tensor) -> dict[str, Cloud]:
        names = {name for layer in self.layers if layer.running for name in layer.active_adapters}
        known = [name for name in sorted(names) if any(name in layer.adapters for layer in self.layers)]
        return {name: self._cloud(self.shared(name), patches, centers.detach()) for name in known}

    def _cloud(self, shared: Shared, patches: Tensor, centers: Tensor) -> Cloud:
        size, threshold = patches.shape[2] // 2, self.backbone.group_divider.origin_threshold
        plain = neighbourhoods(centers, None, size, threshold)
        prompted = None if shared.places is None else neighbourhoods(centers, shared.places, size, threshold)
        recalled = None
        if shared.size:
            try:
                feature = self.side.get(GIVEN)
            except LookupError:
                feature = patch_features(self.backbone, patches, centers)
            assert shared.places is not None
            recalled = memory_tokens(feature.to(shared.memory.dtype), shared.memory, len(shared.places) - 2)
        return Cloud(plain, prompted, recalled)
