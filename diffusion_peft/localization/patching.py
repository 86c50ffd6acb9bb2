"""Attention that reads another text in a few layers: keys and values of the target in place of the source's.

Only the projections that make them are wrapped, so that any backend of attention, and adapters on the same projections,
stay as they are. Two ways to the target's rows:

| way | target's keys and values | for |
|---|---|---|
| lockstep | rows of the same batch, ``[source, target]``: the target's run beside | every model |
| inject | ``W E_T``, once a generation | cross-attention, where the text depends on neither step nor picture |

Nothing is kept from step to step but what `inject` makes once. Staniszewski et al., ICLR 2025 (arXiv 2502.09835).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_peft.localization.layers import TextLayer, bare, chosen_layers


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
        self._index: Tensor | None = None

    def index(self, rows: int, device: torch.device) -> Tensor:
        """The row that every row takes its output from."""
        if self._index is None or len(self._index) != rows or self._index.device != device:
            self._index = self.slots.index(rows, self.layer.name, self.unconditional, device)
        return self._index

    def replaced(self, x: Tensor, y: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        y = self.base(x, *args, **kwargs) if y is None else y
        return y.index_select(0, self.index(len(y), y.device))

    def mask(self, mask: Tensor) -> Tensor:
        """The mask of the text that each row reads, one row a row of the batch."""
        return mask.index_select(0, self.index(len(mask), mask.device))


class Inject(PatchedProjection):
    """Rows take the projection of given text states, made once where no gradient is wanted."""

    def __init__(self, *given: Any, states: Tensor, attention: Any) -> None:
        super().__init__(*given)
        self._states, self._attention = states, (attention,)  # hidden from `modules`: it holds this one
        self._kept: Tensor | None = None

    def replaced(self, x: Tensor, y: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
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


@contextmanager
def patch_text(
    model: Any,
    layers: str | Sequence[int | str] = "auto",
    *,
    target: Tensor | None = None,
    pictures: int | None = None,
    slots: Mapping[int, Slots] | None = None,
    heads: Mapping[int | str, Sequence[int]] | None = None,
    start_step: int = 0,
    end_step: int | None = None,
    patch_uncond: bool = True,
) -> Iterator[Window]:
    """Let a few layers read the target's text within the block; afterwards the model is as it was.

    Exactly one of ``target`` (inject), ``pictures`` and ``slots`` (lockstep) is given.

    Args:
        model: a denoiser, or a pipeline.
        layers: numbers in the order of execution, names, or ``auto`` for those that the paper found.
        target: states of the target text ``[rows, tokens, channels]``, as the denoiser is called with, one row for each
            of its rows: ``[negative, target]`` under guidance. Cross-attention alone.
        pictures: number of source pictures; the model is called with ``[source, target]``, this many rows of each,
            repeated for the halves of guidance. Source and target start from the same noise.
        slots: more than two generations beside each other, by number of the layer.
        heads: numbers of the heads to replace, by layer; all where none are given.
        start_step: first step to replace in; 0 is the noisiest.
        end_step: first step not to replace in any more.
        patch_uncond: whether the negative half of a lockstep batch is replaced too.

    Yields:
        the `Window`.

    Raises:
        ValueError: unknown layers or heads, fused projections, or inject on joint attention.
    """
    chosen = chosen_layers(model, layers)
    model = bare(model)
    if sum(way is not None for way in (target, pictures, slots)) != 1:
        raise ValueError("give one of `target` (inject), `pictures` (lockstep) and `slots`")
    own = _heads(chosen, heads or {})
    if target is not None:
        _check_inject(model, chosen, patch_uncond)
        target = _embedded(model, target)
    window = Window(start_step, end_step)
    with ExitStack() as stack:
        if not window.always:
            stack.callback(window.watch(model).remove)
        for layer in chosen:
            attention: Any = model.get_submodule(layer.name)
            if getattr(attention, "fused_projections", False):
                raise ValueError(f"{layer.name}: its projections are fused; call `unfuse_qkv_projections()` first")
            wrapped: Any = None
            for name in layer.projections:
                base = getattr(attention, name)
                given = base, layer, window, _columns(layer, base, own.get(layer.index))
                if target is not None:
                    wrapped = Inject(*given, states=target, attention=attention)
                else:
                    rows = slots[layer.index] if slots is not None else Slots(pictures or 0)
                    wrapped = Lockstep(*given, slots=rows, unconditional=patch_uncond)
                wrapped.train(base.training)
                setattr(attention, name, wrapped)
                stack.callback(setattr, attention, name, base)
            if not layer.joint:
                hook = attention.register_forward_pre_hook(_masked(wrapped), with_kwargs=True)
                stack.callback(hook.remove)
        yield window


def _heads(chosen: Sequence[TextLayer], heads: Mapping[int | str, Sequence[int]]) -> dict[int, list[int]]:
    found = {}
    for key, numbers in heads.items():
        layer = next((one for one in chosen if key in (one.index, one.name)), None)
        if layer is None:
            raise ValueError(f"`heads` names the layer {key!r}, which is not among {[one.index for one in chosen]}")
        if not numbers or not all(0 <= head < layer.heads for head in numbers):
            raise ValueError(f"{layer.name} has the heads 0 to {layer.heads - 1}; found {list(numbers)}")
        found[layer.index] = list(numbers)
    return found


def _columns(layer: TextLayer, base: Any, heads: list[int] | None) -> Tensor | None:
    if heads is None:
        return None
    columns = torch.zeros(layer.heads, base.out_features // layer.heads, dtype=torch.bool)
    columns[heads] = True
    return columns.flatten()


def _check_inject(model: nn.Module, chosen: Sequence[TextLayer], patch_uncond: bool) -> None:
    for layer in chosen:
        if layer.joint:
            raise ValueError(
                f"{layer.name} is joint attention: its text has seen the picture, so the target must run beside the "
                "source (`pictures=`)"
            )
    if not patch_uncond:
        raise ValueError("`patch_uncond=False` is for lockstep: give the source's negative states within `target`")


def _embedded(model: Any, target: Tensor) -> Tensor:
    """The states behind the model's own projection of text, which DeepFloyd IF and PixArt have."""
    if getattr(model, "encoder_hid_proj", None) is not None:
        return model.process_encoder_hidden_states(target, {})
    projection = getattr(model, "caption_projection", None)
    return target if projection is None else projection(target)


def _masked(projection: Any) -> Any:
    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mask = kwargs.get("attention_mask")
        if mask is None or not projection.window.active:
            return None
        if not isinstance(projection, Lockstep) or projection.columns is not None:
            raise ValueError(
                f"{projection.layer.name}: the text is masked, and the mask belongs to the keys: let the target run "
                "beside the source (`pictures=`), with all heads"
            )
        return args, {**kwargs, "attention_mask": projection.mask(mask)}

    return before
