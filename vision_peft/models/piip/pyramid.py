"""PIIP: the same picture at several sizes through several networks, the largest size through the smallest network.

Zhu et al., *Parameter-Inverted Image Pyramid Networks*, NeurIPS 2024, arXiv 2406.04330; Wang et al., TPAMI 2025, arXiv
2501.07783. After every segment of blocks neighbouring branches hear each other (`interaction`); in the end each branch
keeps its own classifier and the logits are averaged, or all maps are merged into one (`merge`). Gates start at 0: a new
pyramid computes exactly what its branches do by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional as F

from .branches import STAGES, State, Transformer, view
from .errors import check_depths, choose
from .interaction import Interaction, InteractionSpec
from .layout import Layout, Size
from .merge import Levels, Merge, Stages
from .released import before_loading
from .timm_api import TimmApi

Readout = Literal["cls", "patch0", "mean"]
Output = Literal["separate", "merged", "dense"]


class Piip(TimmApi):
    """Branches that hear each other, and what comes out of them.

    Args:
        branches: timm models, the widest first; as ``branch1``, ``branch2``, ... they stay what they are.
        sizes: side (or height and width) of the picture that each takes; the last is the model's input.
        names: of the branches in messages.
        spec: what interactions are made of.
        n_interactions: N, segments that each branch is divided into.
        interaction_indexes: instead of N, the blocks ``[first, last]`` of each segment of each branch.
        output: "separate" classifiers with averaged logits, one classifier on the "merged" map, or "dense" levels.
        readout: what separate classifiers read: their class token ("cls", or whatever the branch pools by itself),
            the top left patch ("patch0", as the authors' code and so their published weights do), the patches' "mean".
        merge_at: of a dense pyramid, the four segments after each of which the branches are merged into one level; by
            default the first two and the last two where a branch has stages and there are so many, else all levels are
            made of the last.
        last_interaction: whether the branches hear each other after the last segment; by default they do unless
            class tokens are read out, which that interaction cannot reach.
        class_position: whether class tokens keep their part of a position embedding; the authors' code drops it.
        antialias_images: smooth pictures that are made smaller, which the authors' code does not.
        num_classes: of the classifier of a merged map; separate ones are the branches' own.
        drop_rate: of what the classifier of a merged map reads.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: branches out of order, sizes that they cannot take, heads that do not divide their widths.
    """

    def __init__(
        self,
        branches: Sequence[nn.Module],
        sizes: Sequence[int | Size],
        names: Sequence[str] | None = None,
        spec: InteractionSpec | None = None,
        n_interactions: int = 12,
        interaction_indexes: Sequence[Sequence[Sequence[int]]] | None = None,
        output: Output = "separate",
        readout: Readout = "cls",
        merge_at: Sequence[int] | None = None,
        last_interaction: bool | None = None,
        class_position: bool = True,
        antialias_images: bool = False,
        num_classes: int = 1000,
        drop_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(before_loading)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.output, self.readout, self.class_position = output, readout, class_position
        self.antialias_images = antialias_images
        choose(self, "output", ("separate", "merged", "dense"))
        choose(self, "readout", ("cls", "patch0", "mean"))
        views = [view(branch, class_position) for branch in branches]
        named = names or [f"branch {j} ({type(branch).__name__})" for j, branch in enumerate(branches, 1)]
        self.layout = Layout(views, sizes, named, n_interactions, interaction_indexes)
        self.merge_at = check_depths(merge_at, self.layout.count, output)
        if merge_at is None and output == "dense" and self.layout.count >= STAGES and any(v.in_stages for v in views):
            self.merge_at = [0, 1, self.layout.count - 2, self.layout.count - 1]
        self.num_classes, self.grad_checkpointing = num_classes, False
        self.in_chans = getattr(branches[-1], "in_chans", 3)
        for j, branch in enumerate(branches, 1):
            self.add_module(f"branch{j}", branch)
        if last_interaction is None:
            last_interaction = output != "separate" or readout != "cls"
        self.interactions = nn.ModuleList(
            Interaction(self.layout.at(k), spec or InteractionSpec(), **dd)
            for k in range(self.layout.count if last_interaction else self.layout.count - 1)
        )
        self._make_output(views, self.layout.at(-1), drop_rate, dd)

    def _make_output(
        self, views: Sequence[Transformer], widths: list[int], drop_rate: float, dd: dict[str, Any]
    ) -> None:
        self.num_features = self.head_hidden_size = sum(widths) if self.output == "separate" else widths[0]
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": sum(self.layout.at(k)), "reduction": stride, "module": f"interactions.{k}"}
            for k, stride in enumerate(self.layout.reductions)
        ]
        if self.output == "separate":
            return
        for each in views:
            each.drop_head()
        if self.output == "dense":
            self._make_levels(dd)
            return
        self.merge = Merge(widths, "classification", **dd)
        self.cls_norm = nn.LayerNorm(widths[0], eps=1e-6, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.cls_head = nn.Linear(widths[0], self.num_classes, **dd) if self.num_classes else nn.Identity()

    def _make_levels(self, dd: dict[str, Any]) -> None:
        self.num_classes, depths = 0, self.merge_at or [-1] * STAGES
        merges = [Merge(self.layout.at(k), "stage", **dd) for k in self.merge_at or ()]
        self.merge = nn.ModuleList(merges) if merges else Merge(self.layout.at(-1), "detection", **dd)
        widths, strides = ([values[k] for k in depths] for values in (self.layout.widths[0], self.layout.reductions))
        staged = len(set(strides)) > 1
        self.levels = Stages() if staged else Levels(widths, **dd)
        scales = (1,) * STAGES if staged else Levels.scales
        self.feature_info = [
            {"num_chs": width, "reduction": int(stride / scale), "module": f"levels.{name}"}
            for width, stride, scale, name in zip(widths, strides, scales, Levels.names, strict=True)
        ]

    def views(self) -> list[Transformer]:
        """The branches as the pyramid sees them, the widest first."""
        names = [f"branch{j}" for j in range(1, len(self.layout.sizes) + 1)]
        return [view(self.get_submodule(name), self.class_position) for name in names]

    def images(self, x: Tensor) -> list[Tensor]:
        """What each branch sees of pictures ``[batch, channels, height, width]``: resized bilinearly."""
        given, largest = (x.shape[-2], x.shape[-1]), self.layout.sizes[-1]
        if given != largest and not all(each.dynamic for each in self.views()):
            raise ValueError(
                f"this pyramid takes pictures of {largest[0]}×{largest[1]}, but these have {given[0]}×{given[1]}; "
                "create it with that img_size, or with dynamic_img_size=True for any"
            )
        sizes = self.layout.shown(given)
        smooth = self.antialias_images
        return [x if s == given else F.interpolate(x, s, mode="bilinear", antialias=smooth) for s in sizes]

    def run(self, x: Tensor, last: int | None = None) -> list[list[State]]:
        """The branches' states after each segment, once they have heard each other, up to the segment ``last``."""
        views, found = self.views(), []
        states = [each.embed(image) for each, image in zip(views, self.images(x), strict=True)]
        for k in range(self.layout.count if last is None else last + 1):
            parts = [own[k] for own in self.layout.segments]
            states = [self._segment(*each) for each in zip(views, states, parts, strict=True)]
            if k < len(self.interactions):
                states = self._hear(k, states)
            found.append(states)
        return found

    def _segment(self, each: Transformer, state: State, part: list[int]) -> State:
        def run(tokens: Tensor, prefix: Tensor | None) -> tuple[Tensor, Tensor | None, int, int]:
            new = each.run(State(tokens, state.grid, prefix, state.more), *part)
            return new.tokens, new.prefix, *new.grid

        again = self.grad_checkpointing and torch.is_grad_enabled()
        tokens, prefix, *grid = (
            checkpoint(run, state.tokens, state.prefix) if again else run(state.tokens, state.prefix)
        )
        return State(tokens, (grid[0], grid[1]), prefix, state.more)

    def _hear(self, k: int, states: Sequence[State]) -> list[State]:
        grids = [state.grid for state in states]

        def hear(*tokens: Tensor) -> list[Tensor]:
            return self.interactions[k](tokens, grids)

        given = [state.tokens for state in states]
        again = self.grad_checkpointing and torch.is_grad_enabled()
        new = checkpoint(hear, *given) if again else hear(*given)
        return [State(t, s.grid, s.prefix, s.more) for t, s in zip(new, states, strict=True)]

    def _features(self, found: Sequence[Sequence[State]]) -> Any:
        if self.merge_at:
            given = zip(self.merge, self.merge_at, strict=True)  # type: ignore[arg-type]
            return [merge([state.map() for state in found[k]]) for merge, k in given]
        states = found[-1]
        if self.output != "separate":
            return self.merge([state.map() for state in states])
        pairs = zip(self.views(), states, strict=True)
        if self.readout == "cls":
            return [each.normed(state) for each, state in pairs]
        return [each.normed(State(state.tokens, state.grid)) for each, state in pairs]

    def forward_features(self, x: Tensor) -> Any:
        """What classifier or levels read: the merged map or maps, or each branch's tokens after its last norm."""
        return self._features(self.run(x))

    def forward_head(self, x: Any, pre_logits: bool = False) -> Any:
        """Logits of `forward_features`' output, or what the last linear layers read, side by side."""
        if self.output == "dense":
            return self.levels(x)
        if self.output == "merged":
            x = self.head_drop(self.cls_norm(x.flatten(2).mT).mean(1))
            return x if pre_logits else self.cls_head(x)
        read = [self._read(each.model, own, pre_logits) for each, own in zip(self.views(), x, strict=True)]
        return torch.cat(read, -1) if pre_logits or not self.num_classes else torch.stack(read).mean(0)

    def _read(self, model: Any, x: Tensor, pre_logits: bool) -> Tensor:
        if self.readout == "cls":
            return model.forward_head(x, pre_logits=pre_logits)
        first = self.readout == "patch0"
        if x.ndim == 4:  # a convolutional branch's head norms what it has pooled
            x = x[..., :1, :1] if first else x.mean((2, 3), keepdim=True)
            return model.forward_head(x, pre_logits=pre_logits)
        x = model.head_drop(model.fc_norm(x[:, 0] if first else x.mean(1)))
        return x if pre_logits else model.head(x)

    def forward(self, x: Tensor) -> Any:
        """Logits of pictures; of a dense pyramid its levels, the finest first."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Maps by timm's rules: of a dense pyramid its levels, of others all branches' maps after each segment.

        Those of several branches stand side by side as channels, on the finest grid. ``norm`` changes nothing.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be NCHW; found {output_fmt!r}")
        take, last = feature_take_indices(len(self.feature_info), indices)
        if self.output == "dense":
            merged = self.forward_features(x)
            found = self.levels(merged, take)
            return found if intermediates_only else (merged, found)
        states = self.run(x, last if stop_early or intermediates_only else None)
        found = [_side_by_side([state.map() for state in states[k]]) for k in take]
        return found if intermediates_only else (self._features(states), found)


def _side_by_side(maps: Sequence[Tensor]) -> Tensor:
    size = maps[-1].shape[-2:]
    return torch.cat(
        [each if each.shape[-2:] == size else F.interpolate(each, size, mode="bilinear") for each in maps], 1
    )
