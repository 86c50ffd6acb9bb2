"""SCEdit's tuner of one skip, and the layer around the decoder block that reads the skip."""

from __future__ import annotations

import warnings
from typing import Any
from weakref import finalize

import torch
from torch import Tensor, nn

from peft_kernels.context import SideInputs
from peft_kernels.feature import Feature, FeatureLayer
from peft_kernels.frozen import forget_inputs, remember_inputs
from peft_kernels.ops import pointwise_mlp

HINTS = "scedit hints"  # what the condition encoders leave for the skips of the same forward pass


class ScTuner(Feature):
    """``F(v) = W₂ gelu(W₁ v + b₁) + b₂`` on every pixel (or token) of a skip.

    Args:
        channels: the skip's width C.
        hidden: the width h between the two layers.
        place: which hint of a condition belongs to the skip, in encoder order; None for a tuner without condition.
        factor: the strength at this skip.
    """

    def __init__(self, channels: int, hidden: int, place: int | None = None, factor: float = 1.0) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.place, self.factor = place, factor

    def start_at_the_base(self) -> None:
        """Let F be 0: the model's outputs are the base model's, bit for bit."""
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, skip: Tensor, hint: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """The summand of the skip ``[B, C, H, W]`` (or ``[B, N, C]``): ``F(s)``, with a hint ``c + F(s + c)``."""
        down, up = self.down, self.up
        value = pointwise_mlp(
            skip if hint is None else skip + hint, down.weight, down.bias, up.weight, up.bias, channel_axis(skip)
        )
        return value if hint is None else hint + value

    def why_no_merge(self) -> str:
        return "a GELU stands between its layers, and a norm reads the skip that it edits"


class SkipLayer(FeatureLayer):
    """A decoder block called with ``[hidden, skip]`` on its channels; adapters edit the skip: ``s + Σ scale · F(s)``.

    All of them read the skip as the encoder left it, none what another made of it; so their order does not matter.

    Args:
        base_layer: the decoder block.
        prefix: the method's prefix.
        channels: width of the skip.
        first: whether this is the first edited skip that the decoder reads.
    """

    def __init__(self, base_layer: nn.Module, prefix: str, channels: int, first: bool = False) -> None:
        super().__init__(base_layer, prefix)
        self.channels, self.first = channels, first
        self.side: SideInputs | None = None
        self._forgetful: list[nn.Module] = []

    def forget(self, modules: Any) -> None:
        """Let frozen convolutions that run behind the skip drop their inputs, as long as this layer stands."""
        self._forgetful += forget_inputs(modules)
        finalize(self, remember_inputs, self._forgetful).atexit = False  # diffusers' `unload_lora` tells no layer

    def detach(self) -> None:
        remember_inputs(self._forgetful)
        self._forgetful.clear()

    def adapted_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        running = self._strengths(x)
        if not running:
            return self.base_layer(x, *args, **kwargs)
        self._look_at_graph(x)
        axis = channel_axis(x)
        skip = self._skip(x, axis)
        summand, copies = None, {}
        for tuner, hint, scale in running:
            dtype = _computing(tuner, x)
            read = copies[dtype] = copies[dtype] if dtype in copies else _own(skip, x, dtype)
            value = tuner(read, hint if hint is None else hint.to(dtype))
            value = value if scale == 1 else scale * value
            summand = value if summand is None else summand + value
        edited = x.clone()  # laid out as it was, so that what reads it gives the same bits
        self._skip(edited, axis).add_(summand)  # type: ignore[arg-type]
        return self.base_layer(edited, *args, **kwargs)

    def _skip(self, x: Tensor, axis: int) -> Tensor:
        return x.narrow(axis, x.shape[axis] - self.channels, self.channels)

    def _strengths(self, x: Tensor) -> list[tuple[ScTuner, Tensor | None, float]]:
        """The tuners that change something, each with its hint and its strength."""
        found: list[tuple[ScTuner, Tensor | None, float]] = []
        for name in self.active_adapters if self.running else ():
            if name not in self.adapters:
                continue
            tuner: Any = self.adapters[name]
            scale, hint = self.scaling[name] * tuner.factor, None
            if tuner.place is not None and scale:
                assert self.side is not None
                strength, hints = self.side.get(HINTS).get(name, (0.0, ()))
                scale *= strength
                hint = _spread(hints[tuner.place], len(x)) if scale else None
            if scale:
                found.append((tuner, hint, scale))
        return found

    def _look_at_graph(self, x: Tensor) -> None:
        if self.first and self.training and torch.is_grad_enabled() and x.requires_grad:
            warnings.warn(
                "the encoder is part of the graph, so SCEdit saves neither its activations nor its backward pass: "
                "something before the decoder requires a gradient (text states, latents, another adapter, a weight)",
                stacklevel=2,
            )


def channel_axis(x: Tensor) -> int:
    """-1 for tokens ``[B, N, C]``, 1 for feature maps."""
    return -1 if x.ndim == 3 else 1


def _computing(tuner: ScTuner, x: Tensor) -> torch.dtype:
    return x.dtype if torch.is_autocast_enabled(x.device.type) else tuner.down.weight.dtype


def _own(skip: Tensor, whole: Tensor, dtype: torch.dtype) -> Tensor:
    """The skip to be kept for backward: as a slice it would keep the whole of the block's input."""
    if skip.dtype != dtype:
        return skip.to(dtype)
    if not torch.is_grad_enabled():
        return skip
    last = whole.ndim == 4 and not whole.is_contiguous() and whole.is_contiguous(memory_format=torch.channels_last)
    return skip.clone(memory_format=torch.channels_last if last else torch.contiguous_format)


def _spread(hint: Tensor, batch: int) -> Tensor:
    """A hint for each sample: one for all, or the same ones for both halves of classifier-free guidance."""
    if len(hint) in (1, batch):
        return hint
    return hint.repeat(batch // len(hint), *[1] * (hint.ndim - 1))
