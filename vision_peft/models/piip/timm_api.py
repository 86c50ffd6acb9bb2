"""What timm's tools ask of a model besides its forward pass."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from timm.layers import trunc_normal_
from timm.models._features import feature_take_indices
from torch import nn

from .released import check_parts


class TimmApi(nn.Module):
    """Classifier, parameter groups, checkpointing and pruning of a `Piip`, as timm's models offer them."""

    output: str
    layout: Any
    interactions: nn.ModuleList
    merge: Any
    merge_at: list[int] | None
    levels: Any
    feature_info: list[dict[str, Any]]
    num_classes: int
    num_features: int

    def views(self) -> list[Any]:
        """The branches as the pyramid sees them."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> TimmApi:
        """Training mode, but for branches that are frozen: nothing is dropped in them."""
        super().train(mode)
        for each in self.views() if mode else ():
            if not any(p.requires_grad for name, p in each.model.named_parameters() if not name.startswith("head")):
                each.model.eval()
        return self

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As any module's.

        Raises:
            ValueError: the state is of another pyramid.
        """
        if strict:
            check_parts(state_dict, self)
        return super().load_state_dict(state_dict, strict, assign)

    def no_weight_decay(self) -> set[str]:
        """Parameters without decay: those the branches name, gates and the merge's scalars."""
        found = {n for n, p in self.named_parameters() if n.endswith("_gamma") or not p.ndim}
        for j, each in enumerate(self.views(), 1):
            own = each.model.no_weight_decay() if hasattr(each.model, "no_weight_decay") else ()
            found |= {f"branch{j}.{name}" for name in own}
        return found

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """A parameter's layer, for layer decay: embeddings, blocks by their place in their branch's depth, what is new.

        Of 24 blocks beside 12, every second is of the layer of one of the 12, as the authors have it.
        """
        views = self.views()
        deepest = max(each.depth for each in views)
        layers = {
            f"branch{j}.{name}.": math.ceil((index + 1) * deepest / each.depth)
            for j, each in enumerate(views, 1)
            for index, name in enumerate(each.block_names())
        }
        stem = re.compile(r"branch\d+\.(?:cls_token|dist_token|reg_token|pos_embed|patch_embed|norm_pre|stem)")
        norm = re.compile(r"branch\d+\.(?:norm|fc_norm)\.")

        def layer(name: str) -> float:
            found = re.match(r"branch\d+\.(?:blocks\.\d+|stages\.\d+\.(?:downsample|blocks\.\d+))\.", name)
            if found:
                return layers[found[0]]
            return 0 if stem.match(name) else deepest if norm.match(name) else math.inf

        return layer

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute segments and interactions again for the backward pass instead of keeping what they hold."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> Any:
        """The classifier of a merged map, or the branches' in a tuple."""
        if self.output == "merged":
            return self.cls_head
        return tuple(each.model.get_classifier() for each in self.views())

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New classifiers for ``num_classes``, none for 0; ``global_pool`` changes what class readouts pool."""
        if self.output == "dense":
            raise ValueError("a dense pyramid has no classifier; create it with output='separate' or 'merged'")
        self.num_classes = num_classes
        if self.output == "separate":
            for each in self.views():
                each.model.reset_classifier(num_classes, global_pool)
            return
        if global_pool is not None:
            raise ValueError(f"a merged map is averaged; found global_pool={global_pool!r}")
        like = next(self.parameters())
        self.cls_head: nn.Module = nn.Identity()
        if num_classes:
            self.cls_head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            trunc_normal_(self.cls_head.weight, std=0.02)
            nn.init.zeros_(self.cls_head.bias)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the intermediates asked for do not need; give their indices."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        if self.output == "dense":
            self.levels.keep(take)
        if self.output == "dense" and not self.merge_at:
            return take
        if self.merge_at:
            self.merge_at = self.merge_at[: last + 1]
            self.merge, last = self.merge[: last + 1], self.merge_at[-1]
        count = last + 1
        self.interactions = self.interactions[:count]
        for each, own in zip(self.views(), self.layout.segments, strict=True):
            each.keep_blocks(own[last][1] + 1)
            if prune_head or prune_norm:
                each.drop_head()
            del own[count:]
        if self.output == "merged" and prune_head:
            self.merge, self.cls_norm, self.cls_head = nn.Identity(), nn.Identity(), nn.Identity()
        self.feature_info = self.feature_info[: max(take) + 1]
        if prune_head or prune_norm:
            self.num_classes = 0
        return take
