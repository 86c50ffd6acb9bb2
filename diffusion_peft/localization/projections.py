"""What stands in place of a projection of text while its layer reads another text: whose rows, and in which steps."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_peft.localization.layers import TextLayer


@dataclass(frozen=True)
class Slots:
    """How the rows of a batch stand for several generations that run beside each other.

    A batch is ``[groups, count, pictures]`` rows: groups are the halves of classifier-free guidance (or one, without).

    Args:
        pictures: rows of one generation.
        count: number of generations.
        takes: which generation's keys and values another one reads.
    """

    pictures: int
    count: int = 2
    takes: Mapping[int, int] = field(default_factory=lambda: {0: 1})

    def index(self, rows: int, where: str, unconditional: bool, device: torch.device) -> Tensor:
        """The row that every one of ``rows`` takes keys and values from."""
        if rows % (self.pictures * self.count):
            raise ValueError(
                f"{where}: {rows} rows are no {self.count} generations of {self.pictures} pictures beside each other"
            )
        own = torch.arange(rows, device=device).view(-1, self.count, self.pictures)
        index = own.clone()
        for to, source in self.takes.items():
            index[:, to] = own[:, source]
        if not unconditional and len(own) > 1:
            index[0] = own[0]
        return index.flatten()


class Window:
    """The steps in which keys and values are replaced, ``start <= step < end``; step 0 is the noisiest.

    A step is as long as the timestep stays the same; a higher one begins the next generation.
    """

    def __init__(self, start: int = 0, end: int | None = None) -> None:
        if start < 0 or (end is not None and end < start):
            raise ValueError(f"steps are start_step <= i < end_step, counted from 0; found {start} and {end}")
        self.start, self.end = start, end
        self.active = self.always = start == 0 and end is None
        self._step, self._timestep = -1, math.inf

    def advance(self, timestep: float) -> None:
        """Note the timestep of the next forward pass."""
        if timestep > self._timestep:
            self._step = -1
        self._step += timestep != self._timestep
        self._timestep = timestep
        self.active = self.start <= self._step < (math.inf if self.end is None else self.end)

    def watch(self, model: nn.Module) -> Any:
        """Follow the steps of a denoiser; gives the handle of the hook."""
        signature = inspect.signature(model.forward)

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            timestep = signature.bind_partial(*args, **kwargs).arguments["timestep"]
            self.advance(float(timestep.flatten()[0] if isinstance(timestep, Tensor) else timestep))

        return model.register_forward_pre_hook(before, with_kwargs=True)


class PatchedProjection(nn.Module):
    """A projection of text whose output is, within the window, that of another text.

    Args:
        base: the projection.
        layer: that it belongs to.
        window: when.
        columns: truth values of the outputs to replace; all where there are none.
    """

    def __init__(self, base: nn.Module, layer: TextLayer, window: Window, columns: Tensor | None) -> None:
        super().__init__()
        self.base, self.layer, self.window = base, layer, window
        self.columns = columns

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self.window.active:
            return self.base(x, *args, **kwargs)
        if self.columns is None:
            return self.replaced(x, None, *args, **kwargs)
        y = self.base(x, *args, **kwargs)
        return torch.where(self.columns.to(y.device), self.replaced(x, y, *args, **kwargs), y)

    def replaced(self, x: Tensor, y: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        """The other text's output for every row; ``y`` is the projection's own, where it is known."""
        raise NotImplementedError


class Lockstep(PatchedProjection):
    """Rows take the outputs of other rows of the batch, computed with them."""

    def __init__(self, *given: Any, slots: Slots, unconditional: bool) -> None:
        super().__init__(*given)
        self.slots, self.unconditional = slots, unconditional
        self.tokens: int | None = None  # of the text, where the picture's follow
        self._index: Tensor | None = None

    def index(self, rows: int, device: torch.device) -> Tensor:
        """The row that every row takes its output from."""
        if self._index is None or len(self._index) != rows or self._index.device != device:
            self._index = self.slots.index(rows, self.layer.name, self.unconditional, device)
        return self._index

    def replaced(self, x: Tensor, y: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        own: Tensor = self.base(x, *args, **kwargs) if y is None else y
        index = self.index(len(own), own.device)
        if self.tokens is None:
            return own.index_select(0, index)
        return torch.cat([own[:, : self.tokens].index_select(0, index), own[:, self.tokens :]], 1)

    def count(self, block: nn.Module) -> Any:
        """Take the number of text tokens from each call of a block; gives the handle of the hook."""
        signature = inspect.signature(block.forward)

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.tokens = signature.bind_partial(*args, **kwargs).arguments["encoder_hidden_states"].shape[1]

        return block.register_forward_pre_hook(before, with_kwargs=True)

    def mask(self, mask: Tensor) -> Tensor:
        """The mask of the text that each row reads, one row a row of the batch."""
        return mask.index_select(0, self.index(len(mask), mask.device))


class Inject(PatchedProjection):
    """Rows (all where none are named) take the projection of given states, made once where no gradient is wanted."""

    def __init__(self, *given: Any, states: Tensor, attention: Any, rows: Tensor | None) -> None:
        super().__init__(*given)
        self._states, self._attention = states, (attention,)  # hidden from `modules`: it holds this one
        self._rows = None if rows is None else rows[:, None, None]
        self._kept: Tensor | None = None

    def replaced(self, x: Tensor, y: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        found = self._injected(x, *args, **kwargs)
        if self._rows is None:
            return found
        own = self.base(x, *args, **kwargs) if y is None else y
        return torch.where(self._rows.to(own.device), found, own)

    def _injected(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if len(x) != len(self._states) or x.shape[1] != self._states.shape[1]:
            raise ValueError(
                f"{self.layer.name}: the target text has {_form(self._states)}, the model is called with {_form(x)}; "
                "they must be the same (with guidance the target is [negative, target])"
            )
        if self._kept is not None and not torch.is_grad_enabled():
            return self._kept
        states, attention = self._states.to(x.device, x.dtype), self._attention[0]
        if getattr(attention, "norm_cross", None) is not None:
            states = attention.norm_encoder_hidden_states(states)
        found = self.base(states, *args, **kwargs)
        if not torch.is_grad_enabled():
            self._kept = found
        return found


def _form(states: Tensor) -> str:
    return f"{states.shape[0]} rows of {states.shape[1]} tokens"
