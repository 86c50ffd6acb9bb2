"""What SPT trains in one module: single entries, whole vectors, and a low-rank branch or a bottleneck per matrix."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from peft_kernels.calls import flat_name
from peft_kernels.entries import Entries, entries_forward, runs_entries
from peft_kernels.ops import keep_mask
from peft_kernels.ops.frozen import stock_conv
from peft_kernels.reparam import Reparam, ReparamLayer


class LowRank(nn.Module):
    """``Up · Down``, scale 1, on the rows ``start`` to ``stop`` of a matrix, a convolution's too."""

    def __init__(self, shape: Iterable[int], start: int, r: int, init_weights: bool) -> None:
        super().__init__()
        rows, *inner = shape
        self.start, self.stop = start, start + rows
        self.down = nn.Parameter(torch.empty(r, *inner))
        self.up = nn.Parameter(torch.zeros(rows, r))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        if not init_weights:
            nn.init.normal_(self.up, std=0.5)

    def delta(self) -> Tensor:
        """The summand for its rows."""
        return (self.up @ self.down.flatten(1)).view(-1, *self.down.shape[1:])


class Bottleneck(nn.Module):
    """``Up · GELU(Down · Dropout(z) + d) + u`` with z the rows ``start`` to ``stop`` of the output, or the input."""

    def __init__(self, rows: int, start: int, r: int, init_weights: bool, reads_input: bool, dropout: float) -> None:
        super().__init__()
        self.start, self.stop, self.reads_input = start, start + rows, reads_input
        self.dropout = nn.Dropout(dropout)
        self.down, self.up = nn.Linear(rows, r), nn.Linear(r, rows)
        nn.init.zeros_(self.up.bias)
        if init_weights:
            nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z = x if self.reads_input else y[..., self.start : self.stop]
        return self.up(F.gelu(self.down(self.dropout(z))))


class SptAdapter(Reparam):
    """Everything SPT trains in one module.

    Args:
        entries: single entries by the tensor's name.
        whole: first row and length of vectors trained whole, by their names here, ``<tensor>`` or ``<tensor>_<block>``.
        structured: low-rank branches or bottlenecks by row block.
        dropout: of the low-rank branches' input.
        drop_path: of the branches, by sample.
    """

    def __init__(
        self,
        entries: Mapping[str, Entries],
        whole: Mapping[str, tuple[str, int, int]],
        structured: Mapping[str, LowRank | Bottleneck],
        dropout: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.entries = nn.ModuleDict({flat_name(name): part for name, part in entries.items()})
        self.whole = nn.ParameterDict({key: nn.Parameter(torch.zeros(n)) for key, (_, _, n) in whole.items()})
        self.structured = nn.ModuleDict(dict(structured))
        self.vectors = {key: (name, start) for key, (name, start, _) in whole.items()}
        self.dropout, self.drop_path = dropout, drop_path
        names = [*entries, *(name for name, _, _ in whole.values()), *(["weight"] if self.low_rank() else [])]
        self.tensors = tuple(dict.fromkeys(names))

    def low_rank(self) -> list[LowRank]:
        """The low-rank branches, in the order of their rows."""
        return [part for part in self.structured.values() if isinstance(part, LowRank)]

    def bottlenecks(self) -> list[Bottleneck]:
        """The bottlenecks, in the order of their rows."""
        return [part for part in self.structured.values() if isinstance(part, Bottleneck)]

    @torch.no_grad()
    def start_at_random(self) -> None:
        """Move entries and vectors away from the base tensors."""
        for parameter in (*(part.values for part in self.entries.values()), *self.whole.values()):
            assert isinstance(parameter, Tensor)
            parameter.normal_(std=0.1)

    def delta(self, name: str, tensor: Tensor) -> Tensor:
        entries = self.entries._modules.get(flat_name(name))
        if isinstance(entries, Entries):
            change = entries.summand(tensor)
        else:
            change = torch.zeros(tensor.shape, dtype=next(self.parameters()).dtype, device=tensor.device)
        parts = [(start, self.whole[key]) for key, (owner, start) in self.vectors.items() if owner == name]
        if name == "weight":
            parts += [(branch.start, branch.delta()) for branch in self.low_rank()]
        for start, part in parts:
            rows = torch.arange(start, start + len(part), device=tensor.device)
            change = change.index_add(0, rows, part.to(change.dtype))
        return change

    def low_rank_branch(self, base: Any, x: Tensor) -> Tensor:
        """``DropPath(Up · Down · Dropout(x))`` for all row blocks: one product down, one up on a block diagonal."""
        branches = self.low_rank()
        x = F.dropout(x, self.dropout, self.training)
        down = torch.cat([branch.down for branch in branches])
        hidden = base._conv_forward(x, down, None) if down.ndim > 2 else F.linear(x, down)
        hidden = self._dropped(hidden, [len(branch.down) for branch in branches], 1 if down.ndim > 2 else -1)
        up, row = [], 0
        for branch in branches:
            up += [branch.up.new_zeros(branch.start - row, 0), branch.up]
            row = branch.stop
        up = torch.block_diag(*up, up[-1].new_zeros(len(base.weight) - row, 0))
        if down.ndim == 2:
            return F.linear(hidden, up)
        ones = [1] * (down.ndim - 2)
        return stock_conv(hidden, None, up.view(*up.shape, *ones), ones, [0] * len(ones), ones, 1)

    def _dropped(self, hidden: Tensor, sizes: list[int], axis: int) -> Tensor:
        """Each branch's part of ``hidden`` dropped by sample: as good as its output, for nothing is added after it."""
        if not (self.training and self.drop_path and hidden.ndim > 1):
            return hidden
        kept, gain = keep_mask((len(hidden), len(sizes)), self.drop_path, hidden.device)
        kept = kept.repeat_interleave(torch.tensor(sizes, device=hidden.device), 1) * gain
        shape = [len(hidden)] + [1] * (hidden.ndim - 1)
        shape[axis] = sum(sizes)
        return hidden * kept.view(shape).to(hidden.dtype)

    def bottleneck_branch(self, x: Tensor, y: Tensor) -> Tensor:
        """The bottlenecks' summand for ``y``; channels last."""
        parts, row = [], 0
        drop_path = StochasticDepth(self.drop_path, mode="row").train(self.training)
        for branch in self.bottlenecks():
            part = drop_path(branch(x, y))
            parts += [part.new_zeros(()).expand(*part.shape[:-1], branch.start - row), part]
            row = branch.stop
        return torch.cat([*parts, parts[-1].new_zeros(()).expand(*parts[-1].shape[:-1], y.shape[-1] - row)], -1)


class SptLayer(ReparamLayer):
    """A module with SPT's adapters; linear layers and convolutions run their trained entries as one operator."""

    def adapted_forward(self, *args: Any, **kwargs: Any) -> Any:
        base: Any = self.base_layer
        adapters = [(a, scale) for a, scale in self.running if isinstance(a, SptAdapter)]
        plain = runs_entries(base, args, kwargs)
        y = self._with_entries(args[0], adapters) if plain else super().adapted_forward(*args, **kwargs)
        for adapter, scale in adapters:
            dtype = next(adapter.parameters()).dtype
            if plain and adapter.low_rank():
                y = y + scale * adapter.low_rank_branch(base, args[0].to(dtype)).to(y.dtype)
            if adapter.bottlenecks():
                axis = -1 if type(base).forward is nn.Linear.forward else 1
                x, z = (tensor.to(dtype).movedim(axis, -1) for tensor in (args[0], y))
                y = y + scale * adapter.bottleneck_branch(x, z).to(y.dtype).movedim(-1, axis)
        return y

    def _with_entries(self, x: Tensor, adapters: list[tuple[SptAdapter, float]]) -> Tensor:
        """The module's output with entries and vectors, without the branches."""
        base: Any = self.base_layer
        bias = self.effective_tensor("bias") if any("bias" in a.tensors for a, _ in adapters) else base.bias
        found = [(a.entries["weight"], scale) for a, scale in adapters if "weight" in a.entries]
        return entries_forward(base, x, found, bias)  # type: ignore[arg-type]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write the named (default: active) adapters into the base tensors; the originals are kept for `unmerge`.

        Raises:
            NotImplementedError: an adapter has bottlenecks.
        """
        self.check_merge(adapter_names)
        super().merge(safe_merge, adapter_names)

    def check_merge(self, adapter_names: list[str] | None = None) -> None:
        """Raise the error of `merge` without merging."""
        for name in self.active_adapters if adapter_names is None else adapter_names:
            adapter = self.adapters._modules.get(name)
            if isinstance(adapter, SptAdapter) and adapter.bottlenecks():
                raise NotImplementedError(
                    f"adapter {name!r} cannot be merged: an activation function stands between the two projections of "
                    'its bottlenecks. Keep it attached, or train one with structured="lora", which folds away'
                )
