"""Visual prompt tuning: learned tokens in the sequence that the transformer's blocks attend over.

VPT (Jia et al., ECCV 2022, arXiv 2203.12119). With ``x_i`` the tokens before block ``L_i``, ``c`` the class token and
other prefix tokens, ``E_i`` the patches and ``P`` the p prompts of shape ``[p, C]``:

| kind | equation |
|---|---|
| shallow (Eq. 4, 5) | ``[c_i, Z_i, E_i] = L_i([c_(i-1), Z_(i-1), E_(i-1)])`` with ``Z_0 = P`` |
| deep (Eq. 6) | ``[c_i, _, E_i] = L_i([c_(i-1), P_(i-1), E_(i-1)])`` |

A block's layer puts the prompts in after the prefix tokens and takes them out behind the block, so that everything
outside of the blocks (pooling, intermediate features, resized positions) sees as many tokens as without prompts.
Prompts have no position: added ones come before (and ``norm_pre`` too), rotary ones leave them as they are, relative
biases are 0 there.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from peft_kernels.config import MethodConfig, require
from peft_kernels.families import FAMILIES
from peft_kernels.feature import Feature, FeatureLayer
from peft_kernels.registry import register
from peft_kernels.slices import Rows
from peft_kernels.targets import default_targets, find_backbone
from peft_kernels.tokens import admitting, put_in, unturned, weighing
from peft_kernels.tuner import AdapterTuner

_TRAVELLING = "prompts"  # the attribute of a block's output that holds shallow prompts on their way to the next block
_SHARED = "shared_rel_pos_bias"  # what BEiT calls it


class Prompt(Feature):
    """The prompts of one block.

    Args:
        shape: ``(p, C)``; ``None`` where the prompts come from the block before (shallow).
        bound: they start uniform in ``±bound``; ``None`` for a random start that changes the function.
        travels: whether the next block gets what this one makes of them (shallow).
        dropout: probability of setting an entry to zero, apart for each sample.
    """

    def __init__(self, shape: tuple[int, int] | None, bound: float | None, travels: bool, dropout: float) -> None:
        super().__init__()
        self.travels = travels
        self.dropout = nn.Dropout(dropout)
        self.prompt = None if shape is None else nn.Parameter(torch.empty(shape))
        if self.prompt is not None:
            nn.init.normal_(self.prompt) if bound is None else nn.init.uniform_(self.prompt, -bound, bound)

    def tokens(self, name: str, x: Tensor) -> Tensor:
        """The prompts ``[B, p, C]`` for the tokens ``x`` of shape ``[B, N, C]``.

        Raises:
            RuntimeError: shallow prompts got lost between two blocks.
        """
        if self.prompt is not None:
            return self.dropout(self.prompt.to(x.dtype).expand(x.shape[0], -1, -1))
        travelling = getattr(x, _TRAVELLING, {})
        if name not in travelling:
            raise RuntimeError(
                f"the shallow prompts of adapter {name!r} did not reach this block: its input must be the very output "
                "of the block before (no reentrant checkpointing, nothing that changes tokens between the blocks); "
                "deep prompts (`deep=True`) do not travel"
            )
        return travelling[name]

    def why_no_merge(self) -> str:
        return "prompts are tokens that the blocks attend to, not a change of weights"


class PromptLayer(FeatureLayer):
    """A transformer block whose sequence holds the prompts of the active adapters, one after the other.

    A scale ``s`` is the factor of the weight with which the prompts are attended to: ``log s`` added to their logits.

    Args:
        base_layer: the block, called with tokens ``[B, N, C]``.
        prefix: the method's prefix.
        after: the number of prefix tokens, behind which prompts stand.
    """

    def __init__(self, base_layer: nn.Module, prefix: str, after: int) -> None:
        super().__init__(base_layer, prefix)
        self.after = after
        beit = _SHARED in inspect.signature(base_layer.forward).parameters
        self.mask = _SHARED if beit else "attn_mask"  # what the block calls its mask

    def set_scale(self, adapter: str, scale: float) -> None:
        if scale < 0:
            raise ValueError(f"the scale of prompts is a factor of attention, at least 0; found {scale}")
        super().set_scale(adapter, scale)

    def adapted_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        names = [name for name in self.active_adapters if name in self.adapters and self.scaling[name] != 0]
        if not names:
            return self.base_layer(x, *args, **kwargs)
        adapters: list[Any] = [self.adapters[name] for name in names]
        prompts = [adapter.tokens(name, x) for name, adapter in zip(names, adapters, strict=True)]
        counts = [prompt.shape[1] for prompt in prompts]
        scales = [self.scaling[name] for name, count in zip(names, counts, strict=True) for _ in range(count)]
        with self._table_passed_on(kwargs) as kwargs:
            kwargs = self._told(kwargs, x.shape[1], scales)
            y = self.base_layer(put_in(x, torch.cat(prompts, 1), self.after, 1), *args, **kwargs)
        before, inside, behind = y.split([self.after, sum(counts), x.shape[1] - self.after], 1)
        out = torch.cat([before, behind], 1)
        parts = zip(names, adapters, inside.split(counts, 1), strict=True)
        travelling = {name: part for name, adapter, part in parts if adapter.travels}
        if travelling:
            # On the tensor itself: recomputed blocks are called with the same one, and no pass meets another's.
            setattr(out, _TRAVELLING, travelling)
        return out

    def _told(self, kwargs: dict[str, Any], length: int, scales: list[float]) -> dict[str, Any]:
        """What the block is called with, for the prompts' sake too."""
        kwargs, count = dict(kwargs), len(scales)
        if kwargs.get("rope") is not None:
            kwargs["rope"] = unturned(kwargs["rope"], count)
        mask = kwargs.get(self.mask)
        if mask is not None:
            mask = kwargs[self.mask] = admitting(mask, self.after, count)
        if any(scale != 1 for scale in scales):
            like = next(p for p in self.base_layer.parameters() if p.is_floating_point())
            logs = like.new_tensor([math.log(scale) for scale in scales])
            kwargs[self.mask] = weighing(mask, put_in(like.new_zeros(length), logs, self.after, 0))
        return kwargs

    @contextmanager
    def _table_passed_on(self, kwargs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Hand BEiT's attention its biases from outside: by itself it could not tell those of pairs with prompts."""
        attention: Any = getattr(self.base_layer, "attn", None)
        if self.mask != _SHARED or attention.relative_position_bias_table is None:
            yield kwargs
            return
        shared, own = kwargs.get(_SHARED), attention._get_rel_pos_bias()
        attention.__dict__["relative_position_bias_table"] = None  # hides the parameter
        try:
            yield {**kwargs, _SHARED: own if shared is None else own + shared}
        finally:
            del attention.__dict__["relative_position_bias_table"]


class VptTuner(AdapterTuner):
    """Attaches prompts."""

    layer_cls = PromptLayer
    target_kind = "block"

    def default_targets(self, config: VptConfig, model: nn.Module) -> str:
        self._check_family(model)
        return default_targets(model, "block")

    @staticmethod
    def _check_family(model: nn.Module) -> None:
        found = find_backbone(model)
        if found and found[2] is not FAMILIES["vit"]:
            windows = hasattr(found[1], "window_size") or "Swin" in type(found[1]).__name__
            reason = "attends within windows of fixed size" if windows else "has no sequence of tokens"
            if found[2].denoiser:
                reason = "is a denoiser, whose blocks take no further tokens"
            raise ValueError(
                f"VPT puts tokens into the one sequence that a vision transformer attends over; "
                f"{type(found[1]).__name__} {reason}: take SSF, SNELL or Adapter+"
            )

    def check_target(self, config: VptConfig, key: str, base: nn.Module) -> None:
        self._check_family(self.model)
        if not any(hasattr(module, "num_heads") for module in base.modules()) or self._width(base) is None:
            raise ValueError(f"VPT prompts whole transformer blocks; {key!r} is a {type(base).__name__}")

    def _check_targets(self, config: VptConfig) -> None:
        super()._check_targets(config)
        if not config.deep:
            keys = [key for key, _ in self._targets(config)]
            indices = [key.rpartition(".")[2] for key in keys]
            if not all(index.isdigit() and int(index) == int(indices[0]) + i for i, index in enumerate(indices)):
                raise ValueError(
                    f"shallow prompts travel from block to block: targets must follow each other; found {keys}"
                )

    def _width(self, block: nn.Module) -> int | None:
        found = find_backbone(self.model)
        if found is not None:
            return found[1].embed_dim  # type: ignore[return-value]
        shapes = (getattr(module, "normalized_shape", None) for module in block.modules())
        return next((shape[-1] for shape in shapes if shape), None)

    def wrap(self, config: VptConfig, key: str, base: nn.Module) -> PromptLayer:
        found = find_backbone(self.model)
        return PromptLayer(base, self.prefix, getattr(found[1], "num_prefix_tokens", 0) if found else 0)

    def make_adapter(self, config: VptConfig, key: str, base: nn.Module, rows: Rows | None) -> Prompt:
        width = self._width(base)
        assert width is not None
        first = config.deep or key == next(self._targets(config))[0]
        shape = (config.num_tokens, width) if first else None
        found = find_backbone(self.model)
        weight = found[1].get_submodule("patch_embed.proj").weight if found else None
        fan_in = weight[0].numel() if isinstance(weight, Tensor) else width  # 3 · patch² for images in colour
        bound = math.sqrt(6 / (fan_in + width)) if config.init_weights else None
        return Prompt(shape, bound, travels=not config.deep, dropout=config.dropout)


@register(
    "vpt",
    tuner=VptTuner,
    prefix="vpt_",
    family="vision",
    summary="Learned prompt tokens, in each block (deep) or before the first (shallow)",
    paper="Jia et al., ECCV 2022",
)
@dataclass
class VptConfig(MethodConfig):
    """VPT: p learned tokens in the sequence of every block (deep), or from the first block on (shallow).

    ViT-B/16, p = 10: 92,160 parameters without the head (12 · p · C) deep, 7,680 (p · C) shallow. Nothing merges:
    every block attends over p more tokens. Two active adapters put their prompts side by side.

    Args:
        num_tokens: the number p of prompts (the paper's grid: 1, 5, 10, 50, 100, 200).
        deep: whether every block has prompts of its own, or the first block's travel on through the others.
        dropout: probability of setting an entry of the prompts to zero while training.
    """

    num_tokens: int = field(default=10, metadata={"help": "Prompt tokens."})
    deep: bool = field(default=True, metadata={"help": "Prompts of its own for each block; else before the first."})
    dropout: float = field(default=0.1, metadata={"help": "Dropout probability on the prompts."})

    def __post_init__(self) -> None:
        super().__post_init__()
        require(isinstance(self.num_tokens, int) and self.num_tokens >= 1, self, "num_tokens", "an integer >= 1")
        require(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")
