"""Point-PEFT's settings."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from peft_kernels.config import MethodConfig, require
from peft_kernels.registry import register
from vision_peft.methods.pointpeft.memory import made_memory
from vision_peft.methods.pointpeft.tuner import PointPeftTuner


def _choose(config: PointPeftConfig, model: nn.Module, batches: Iterable[Any], loss: Any) -> PointPeftConfig:
    if config.memory_size == 0:
        return config
    return config.with_memory(made_memory(model, batches, loss))


@register(
    "point_peft",
    tuner=PointPeftTuner,
    prefix="pointpeft_",
    family="vision",
    summary="Prompts with a memory of training clouds, and adapters over neighbourhoods of patches",
    paper="Tang et al., AAAI 2024",
    choose=_choose,
    needs="patches of points",
)
@dataclass
class PointPeftConfig(MethodConfig):
    """Point-PEFT: prompts in the first blocks, and behind every block an adapter that pools over neighbourhoods.

    Prompt j of a block is ``E_j + R(t_j)``: ``t`` the cloud's feature, the mean of the most similar features of
    training clouds, and these; ``R`` a residual bottleneck. Behind a block, half as many farthest patches as there are
    gather their nearest ones, which attend to each other; the greatest of each channel is carried to all patches by
    inverse squared distance. Two bottlenecks, the biases of blocks, the last norm and the class token are trained
    beside. Nothing merges, and it does not start at the base model.

    Point-MAE, 15 classes: 710,749 parameters with head and tokens. The 773,017 of the released code (0.7 M in print)
    hold 62,268 that nothing reads: prompts and memory bottlenecks of blocks 6 to 11, and twelve gates. Its neighbours
    from other clouds of the batch are no part of the method either.

    The memory is made from data: `vision_peft.point_peft_config(model, loader)`. A second frozen pass, of the model as
    it was, gives the feature to look up; `bound_features` gives that of another network.

    Args:
        num_prompts: M, prompts of a block.
        prompt_depth: blocks that get prompts, from the first.
        memory_size: training clouds in the memory; 0 for prompts without one. ``None``: not made yet.
        memory_topk: features taken from the memory, two fewer than prompts.
        memory_dim: width of the bottleneck after the memory.
        adapter_dim: width of the two other bottlenecks.
        attn_dim: width of the attention within neighbourhoods; a multiple of the blocks' heads.
        propagate: share of what neighbourhoods give to patches, and of their centre in it.
        adapter_scale: factor of the bottleneck beside the MLP.
        prompt_dropout: probability of setting an entry of the prompts to zero.
        num_batches: batches that the memory is made of, where the training loop makes it.
        batch_size: their size.
    """

    num_prompts: int = field(default=10, metadata={"help": "Prompts of a block."})
    prompt_depth: int = field(default=6, metadata={"help": "Blocks that get prompts, from the first."})
    memory_size: int | None = field(default=None, metadata={"help": "Training clouds in the memory; 0: no memory."})
    memory_topk: int = field(default=8, metadata={"help": "Features taken from the memory, two fewer than prompts."})
    memory_dim: int = field(default=8, metadata={"help": "Width of the bottleneck after the memory."})
    adapter_dim: int = field(default=16, metadata={"help": "Width of the two other bottlenecks."})
    attn_dim: int = field(default=18, metadata={"help": "Width of the attention; a multiple of the heads."})
    propagate: float = field(default=0.3, metadata={"help": "Share of what neighbourhoods give to patches."})
    adapter_scale: float = field(default=0.7, metadata={"help": "Factor of the bottleneck beside the MLP."})
    prompt_dropout: float = field(default=0.1, metadata={"help": "Dropout probability on the prompts."})
    num_batches: int = field(default=16, metadata={"help": "Batches that the memory is made of."})
    batch_size: int = field(default=32, metadata={"help": "Size of these batches."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.memory: Tensor | None = None  # data, saved with the adapter and not in its configuration
        for name in (
            "num_prompts",
            "memory_topk",
            "memory_dim",
            "adapter_dim",
            "attn_dim",
            "num_batches",
            "batch_size",
        ):
            value = getattr(self, name)
            require(isinstance(value, int) and value >= 1, self, name, "an integer >= 1")
        require(isinstance(self.prompt_depth, int) and self.prompt_depth >= 0, self, "prompt_depth", "an integer >= 0")
        require(0 <= self.prompt_dropout < 1, self, "prompt_dropout", "in [0, 1)")
        size = self.memory_size
        if size != 0:
            require(self.prompt_depth > 0, self, "prompt_depth", "above 0 with a memory (memory_size=0: none)")
            expected = f"memory_topk + 2 = {self.memory_topk + 2} with a memory (memory_size=0: none)"
            require(self.num_prompts == self.memory_topk + 2, self, "num_prompts", expected)
            least = f"at least memory_topk, {self.memory_topk}, or 0"
            require(size is None or (isinstance(size, int) and size >= self.memory_topk), self, "memory_size", least)

    def with_memory(self, memory: Tensor) -> PointPeftConfig:
        """A copy with a memory of these features ``[n, C]``, such as `vision_peft.cloud_features` gives.

        Raises:
            ValueError: another shape, or fewer than ``memory_topk``.
        """
        if memory.ndim != 2 or len(memory) < self.memory_topk:
            raise ValueError(
                f"the memory must be features [n, C] of at least memory_topk = {self.memory_topk} clouds; "
                f"found {list(memory.shape)}"
            )
        new = copy.copy(self)
        new.memory, new.memory_size = F.normalize(memory.detach().float(), dim=-1), len(memory)
        return new

    def check_memory(self, width: int) -> None:
        """Raise a ValueError unless the memory, or the decision to have none, is there and of a model's width."""
        if self.memory_size is None:
            raise ValueError(
                "PointPeftConfig needs a memory, which is made from data: use config = "
                "vision_peft.point_peft_config(model, loader), or memory_size=0 for prompts without one; "
                "`vision-peft train` makes it by itself"
            )
        if self.memory is not None and self.memory.shape[1] != width:
            raise ValueError(
                f"the memory must hold features of the model's width {width}; found {self.memory.shape[1]}"
            )


def point_peft_config(
    model: nn.Module, loader: Iterable[Any], loss: Callable[..., Any] | None = None, **fields: Any
) -> PointPeftConfig:
    """The configuration with a memory of the clouds in ``loader``; the model is left as it was.

    Args:
        model: the model that will be adapted.
        loader: batches of the training clouds, ``points`` or ``(points, labels)`` unless ``loss`` reads them.
        loss: ``loss(model, batch)``, which calls the model.
        **fields: of `PointPeftConfig`.

    Raises:
        ValueError: no point transformer, no clouds, or fewer than ``memory_topk``.
    """
    return _choose(PointPeftConfig(**fields), model, loader, loss)
