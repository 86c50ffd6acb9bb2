"""How a timm model serves as a branch: embedded, run block by block, read out.

A branch stays the model that timm made. These views name what the pyramid asks of it; they hold no state of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import DropPath
from timm.models.beit import Beit
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from .attention import Grid
from .segments import segments

STAGES = 4
"""Of a convolutional branch."""


@dataclass(frozen=True)
class State:
    """Where a branch stands.

    Args:
        tokens: of the patches, ``[batch, rows * columns, width]``.
        grid: rows and columns.
        prefix: class and other tokens, which take no part in interactions; ``None`` where there are none.
        more: what the blocks take besides, such as rotary positions.
    """

    tokens: Tensor
    grid: Grid
    prefix: Tensor | None = None
    more: Any = None

    def map(self) -> Tensor:
        """``[batch, width, rows, columns]``."""
        return self.tokens.mT.unflatten(-1, self.grid)

    def sequence(self) -> Tensor:
        """All tokens, those before the patches first."""
        return self.tokens if self.prefix is None else torch.cat((self.prefix, self.tokens), 1)


class Transformer:
    """A vision transformer of timm (ViT, DeiT, AugReg, DINOv2, ...)."""

    in_stages = False

    def __init__(self, model: Any, class_position: bool = True) -> None:
        self.model, self.class_position = model, class_position

    @property
    def depth(self) -> int:
        """Blocks, as segments count them."""
        return len(self.model.blocks)

    @property
    def widths(self) -> list[int]:
        """Of the tokens after each block."""
        return [self.model.embed_dim] * self.depth

    @property
    def strides(self) -> list[int]:
        """Pixels a token after each block."""
        return [self.model.patch_embed.patch_size[0]] * self.depth

    def segments(self, count: int, name: str) -> list[list[int]]:
        """Blocks ``[first, last]`` of each of ``count`` segments; ``name`` is the branch's in messages."""
        return segments(self.depth, count, name)

    @property
    def dynamic(self) -> bool:
        """Whether it takes pictures of any size."""
        return getattr(self.model, "dynamic_img_size", False)

    def embed(self, image: Tensor) -> State:
        """The tokens before the first block."""
        x, count = self._embedded(image), self.model.num_prefix_tokens
        grid = self.model.patch_embed.dynamic_feat_size(tuple(image.shape[-2:]))
        return self._state(x, grid, count)

    def _embedded(self, image: Tensor) -> Tensor:
        model = self.model
        x = model._pos_embed(model.patch_embed(image))
        if not self.class_position and model.num_prefix_tokens and model.pos_embed is not None:
            given = (getattr(model, name, None) for name in ("cls_token", "dist_token", "reg_token"))
            own = [token.expand(len(x), -1, -1) for token in given if token is not None]
            x = torch.cat((*own, x[:, model.num_prefix_tokens :]), 1)
        return model.norm_pre(x)

    @staticmethod
    def _state(x: Tensor, grid: Grid, count: int, more: Any = None) -> State:
        return State(x[:, count:], grid, x[:, :count] if count else None, more)

    def run(self, state: State, first: int, last: int) -> State:
        """After the blocks from ``first`` to ``last``, both included; none where ``first`` is larger."""
        if first > last:
            return state
        x = state.sequence()
        for index in range(first, last + 1):
            x = self._block(index, x, state.more)
        return self._state(x, state.grid, 0 if state.prefix is None else state.prefix.shape[1], state.more)

    def _block(self, index: int, x: Tensor, more: Any) -> Tensor:
        return self.model.blocks[index](x)

    def normed(self, state: State) -> Tensor:
        """All tokens after the last norm: what the model's own ``forward_head`` takes."""
        return self.model.norm(state.sequence())

    def block_names(self) -> list[str]:
        """Of the blocks, as its parameters have them."""
        return [f"blocks.{index}" for index in range(self.depth)]

    def keep_blocks(self, count: int) -> None:
        """Drop the blocks after the first ``count``."""
        self.model.blocks = self.model.blocks[:count]

    def drop_head(self) -> None:
        """Leave nothing behind the last block."""
        for name in ("norm", "fc_norm", "head", "head_dist"):
            if hasattr(self.model, name):
                setattr(self.model, name, nn.Identity())
        self.model.num_classes = 0

    def drop_class_token(self) -> None:
        """Leave the class token out, with its part of the position embedding."""
        model = self.model
        if type(self) is Transformer and model.cls_token is not None and not hasattr(model, "dist_token"):
            if model.pos_embed is not None and not model.no_embed_class:
                model.pos_embed = nn.Parameter(model.pos_embed.detach()[:, 1:], model.pos_embed.requires_grad)
            model.cls_token, model.has_class_token, model.global_pool = None, False, "avg"
            model.num_prefix_tokens -= 1

    def set_drop_path(self, rate: float) -> None:
        """The same probability for all blocks, as PIIP has it, instead of a growing one."""
        for module in self.model.modules():
            for name in ("drop_path", "drop_path1", "drop_path2"):
                if hasattr(module, name):
                    setattr(module, name, DropPath(rate) if rate else nn.Identity())


class EvaTransformer(Transformer):
    """EVA, EVA-02 and DINOv3: rotary positions beside the tokens."""

    def embed(self, image: Tensor) -> State:
        model = self.model
        x, more = model._pos_embed(model.patch_embed(image))
        grid = model.patch_embed.dynamic_feat_size(tuple(image.shape[-2:]))
        return self._state(model.norm_pre(x), grid, model.num_prefix_tokens, more)

    def _block(self, index: int, x: Tensor, more: Any) -> Tensor:
        if more is not None and getattr(self.model, "rope_mixed", False):
            more = more[index]
        return self.model.blocks[index](x, rope=more)


class BeitTransformer(Transformer):
    """BEiT: positions relative to each other, shared by the blocks or their own."""

    def embed(self, image: Tensor) -> State:
        model = self.model
        x = model.patch_embed(image)
        x = torch.cat((model.cls_token.expand(len(x), -1, -1), x), 1)
        x = model.pos_drop(x if model.pos_embed is None else x + model.pos_embed)
        shared = model.rel_pos_bias() if model.rel_pos_bias is not None else None
        return self._state(x, model.patch_embed.grid_size, model.num_prefix_tokens, shared)

    def _block(self, index: int, x: Tensor, more: Any) -> Tensor:
        return self.model.blocks[index](x, shared_rel_pos_bias=more)


class Convolutional(Transformer):
    """ConvNeXt: maps instead of tokens; a stage's downsampling counts as a block."""

    in_stages = True

    def _blocks(self) -> list[tuple[nn.Module, int, int]]:
        found, stride = [], self.model.feature_info[0]["reduction"]
        for stage, info in zip(self.model.stages, self.model.feature_info, strict=True):
            stride = info["reduction"]
            parts = [*([] if isinstance(stage.downsample, nn.Identity) else [stage.downsample]), *stage.blocks]
            found += [(part, info["num_chs"], stride) for part in parts]
        return found

    @property
    def dynamic(self) -> bool:
        return True

    @property
    def depth(self) -> int:
        return len(self._blocks())

    @property
    def widths(self) -> list[int]:
        return [width for _, width, _ in self._blocks()]

    def block_names(self) -> list[str]:
        known = {module: name for name, module in self.model.named_modules()}
        return [known[block] for block, _, _ in self._blocks()]

    @property
    def strides(self) -> list[int]:
        return [stride for _, _, stride in self._blocks()]

    def segments(self, count: int, name: str) -> list[list[int]]:
        """As the authors divide them: from four on a segment for each stage, and for the third all that are left."""
        ends = [index for index, (_, _, stride) in enumerate(self._blocks()[1:]) if stride != self.strides[index]]
        if count < STAGES or len(ends) != STAGES - 1:
            return super().segments(count, name)
        first, last = ends[1] + 1, ends[2]
        middle = segments(last - first, count - STAGES + 1, f"the third stage of {name}")  # beside its downsampling
        third = [[first + (k > 0) + begin, first + 1 + end] for k, (begin, end) in enumerate(middle)]
        return [[0, ends[0]], [ends[0] + 1, ends[1]], *third, [last + 1, self.depth - 1]]

    def embed(self, image: Tensor) -> State:
        return self._from_map(self.model.stem(image))

    @staticmethod
    def _from_map(x: Tensor) -> State:
        return State(x.flatten(2).mT, (x.shape[-2], x.shape[-1]))

    def run(self, state: State, first: int, last: int) -> State:
        if first > last:
            return state
        x = state.map()
        for block, _, _ in self._blocks()[first : last + 1]:
            x = block(x)
        return self._from_map(x)

    def normed(self, state: State) -> Tensor:
        return self.model.norm_pre(state.map())

    def keep_blocks(self, count: int) -> None:
        """Nothing: stages stay whole."""

    def drop_head(self) -> None:
        self.model.norm_pre, self.model.head = nn.Identity(), nn.Identity()
        self.model.num_classes = 0


VIEWS: dict[type[nn.Module], Callable[..., Transformer]] = {
    VisionTransformer: Transformer,
    Eva: EvaTransformer,
    Beit: BeitTransformer,
    ConvNeXt: Convolutional,
}


def view(model: nn.Module, class_position: bool = True) -> Transformer:
    """How the pyramid sees this model.

    Args:
        model: a timm model.
        class_position: whether class and register tokens keep their part of a learned position embedding.

    Raises:
        ValueError: a model that cannot be a branch.
    """
    kind = next((kind for kind in VIEWS if isinstance(model, kind)), None)
    if kind is None:
        known = ", ".join(kind.__name__ for kind in VIEWS)
        raise ValueError(f"a branch must be one of timm's {known}; found {type(model).__name__}")
    if not isinstance(getattr(model, "patch_drop", None), (nn.Identity, type(None))):
        raise ValueError("a branch cannot drop patches, which the others read; set patch_drop_rate to 0")
    return VIEWS[kind](model, class_position) if kind is VisionTransformer else VIEWS[kind](model)
