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

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_peft.localization.layers import TextLayer, bare, chosen_layers
from diffusion_peft.localization.projections import Inject, Lockstep, Slots, Window


@contextmanager
def patch_text(
    model: Any,
    layers: str | Sequence[int | str] = "auto",
    *,
    target: Tensor | None = None,
    pictures: int | None = None,
    slots: Mapping[int, Slots] | None = None,
    rows: Mapping[int, Tensor] | None = None,
    heads: Mapping[int | str, Sequence[int]] | None = None,
    start_step: int = 0,
    end_step: int | None = None,
    patch_uncond: bool = True,
) -> Iterator[Window]:
    """Let a few layers read the target's text within the block; afterwards the model is as it was.

    A backward pass may come later, also where diffusers' gradient checkpointing then computes blocks again.

    Exactly one of ``target`` (inject), ``pictures`` and ``slots`` (lockstep) is given.

    Args:
        model: a denoiser, or a pipeline.
        layers: numbers in the order of execution, names, or ``auto`` for those that the paper found.
        target: states of the target text ``[rows, tokens, channels]``, as the denoiser is called with, one row for each
            of its rows: ``[negative, target]`` under guidance. Cross-attention alone.
        pictures: number of source pictures; the model is called with ``[source, target]``, this many rows of each,
            repeated for the halves of guidance. Source and target start from the same noise.
        slots: more than two generations beside each other, by number of the layer.
        rows: which rows of the batch read ``target``, truth values by number of the layer; all where none are given.
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
    if rows is not None and target is None:
        raise ValueError("`rows` says which rows read `target`: give it too, or `slots` instead")
    own = _heads(chosen, heads or {})
    if target is not None:
        _check_inject(model, chosen, patch_uncond)
        target = _embedded(model, target)
    patch = Patch(Window(start_step, end_step))
    for layer in chosen:
        attention: Any = model.get_submodule(layer.name)
        if getattr(attention, "fused_projections", False):
            raise ValueError(f"{layer.name}: its projections are fused; call `unfuse_qkv_projections()` first")
        for name in layer.projections:
            base = getattr(attention, name)
            given = base, layer, patch.window, _columns(layer, base, own.get(layer.index))
            wrapped: Any
            if target is not None:
                own_rows = None if rows is None else rows[layer.index]
                wrapped = Inject(*given, states=target, attention=attention, rows=own_rows)
            else:
                beside = slots[layer.index] if slots is not None else Slots(pictures or 0)
                wrapped = Lockstep(*given, slots=beside, unconditional=patch_uncond)
                if layer.single:
                    patch.hooks.append(partial(wrapped.count, model.get_submodule(layer.block)))
            patch.places.append((attention, name, wrapped.train(base.training)))
        if not layer.joint:
            patch.hooks.append(partial(attention.register_forward_pre_hook, _masked(wrapped), with_kwargs=True))
    with ExitStack() as stack:
        if not patch.window.always:
            stack.callback(patch.window.watch(model).remove)
        stack.enter_context(patch.on())
        stack.enter_context(patch.remembered(model))
        yield patch.window


@dataclass
class Patch:
    """Projections that stand in place of others, and the hooks that belong to them.

    Attributes:
        window: the steps in which they are in effect.
        places: module of attention, name within it, and what stands there.
        hooks: each registers one and gives its handle.
        standing: whether they stand in the model now.
    """

    window: Window
    places: list[tuple[nn.Module, str, nn.Module]] = field(default_factory=list)
    hooks: list[Callable[[], Any]] = field(default_factory=list)
    standing: bool = False

    @contextmanager
    def on(self) -> Iterator[None]:
        """Within the block they stand in the model."""
        with ExitStack() as stack:
            for attention, name, wrapped in self.places:
                stack.callback(setattr, attention, name, getattr(attention, name))
                setattr(attention, name, wrapped)
            for register in self.hooks:
                stack.callback(register().remove)
            stack.callback(setattr, self, "standing", False)
            self.standing = True
            yield

    @contextmanager
    def remembered(self, model: nn.Module) -> Iterator[None]:
        """Within the block what gradient checkpointing will compute again is noted to run as it does now."""
        with ExitStack() as stack:
            for module in model.modules():
                checkpoint = vars(module).get("_gradient_checkpointing_func")
                if checkpoint is not None:
                    stack.callback(setattr, module, "_gradient_checkpointing_func", checkpoint)
                    module._gradient_checkpointing_func = partial(self._checkpointed, checkpoint)  # type: ignore
            yield

    def _checkpointed(self, checkpoint: Callable[..., Any], function: Callable[..., Any], *args: Any) -> Any:
        active = self.window.active

        def again(*args: Any) -> Any:
            now, self.window.active = self.window.active, active
            try:
                with nullcontext() if self.standing else self.on():
                    return function(*args)
            finally:
                self.window.active = now

        return checkpoint(again, *args)


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
