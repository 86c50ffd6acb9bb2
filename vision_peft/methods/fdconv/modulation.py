"""Kernel spatial modulation: the factors of a sample's kernel, from the mean of its feature map.

The global branch is a perceptron ``e = S(norm(W g))`` with four heads (input channels, output channels, taps and
groups of frequencies); the local one slides over the channels, for a factor at every entry. All factors are 1 where the
logits are 0. The authors' ``1 + tanh(t)`` is ``2 σ(2 t)``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peft_kernels.ops.spectra import at_least_float32

NORMS = ("frozen", "batch", "layer", "rms", "none")
ACTIVATIONS = ("sigmoid", "tanh")


class Gate(NamedTuple):
    """A factor ``multiplier · σ(slope · t)``."""

    multiplier: float
    slope: float

    @classmethod
    def of(cls, activation: str, multiplier: float) -> Gate:
        """``m σ(t)``, or ``1 + tanh(t)``."""
        return cls(2.0, 2.0) if activation == "tanh" else cls(multiplier, 1.0)

    def __call__(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        return self.multiplier * torch.sigmoid(logits * (self.slope / temperature))


class Factors(NamedTuple):
    """Factors of each sample's kernel; absent ones are 1.

    Attributes:
        channels: of the input's channels, ``[B, Ci]``.
        filters: of the output's channels, ``[B, Co]``.
        taps: ``[B, k1 k2]``.
        gains: of the groups of frequencies, ``[B, copies, n]``.
    """

    channels: Tensor | None
    filters: Tensor | None
    taps: Tensor | None
    gains: Tensor


class HiddenNorm(nn.Module):
    """The norm of the hidden layer: ``[B, h]`` to ``[B, h]``.

    Args:
        kind: ``frozen`` (a batch norm whose statistics never move), ``batch``, ``layer``, ``rms`` or ``none``.
        width: h.
    """

    running_mean: Tensor | None
    running_var: Tensor | None

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.ones(width)) if kind != "none" else None
        self.bias = nn.Parameter(torch.zeros(width)) if kind not in ("rms", "none") else None
        self.register_buffer("running_mean", torch.zeros(width) if kind in ("frozen", "batch") else None)
        self.register_buffer("running_var", torch.ones(width) if kind in ("frozen", "batch") else None)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean, var = (
            None if t is None else t.to(x.dtype) for t in (self.weight, self.bias, self.running_mean, self.running_var)
        )
        if self.kind == "none":
            return x
        if self.kind == "rms":
            return F.rms_norm(x, x.shape[-1:], weight, 1e-6)
        if self.kind == "layer":
            return F.layer_norm(x, x.shape[-1:], weight, bias)
        moving = self.training and self.kind == "batch"
        if moving and len(x) < 2:
            raise ValueError(
                "a batch norm over pooled features needs at least 2 samples in training; found 1: take "
                "`ksm_norm='frozen'` (what the published detectors do) or 'layer'"
            )
        again = moving and _computed_again()  # the first pass has moved the statistics
        if again:
            mean, var = (None if t is None else t.clone() for t in (mean, var))
        y = F.batch_norm(x, mean, var, weight, bias, training=moving)
        if moving and not again and mean is not self.running_mean:  # moved in another dtype
            self.running_mean.copy_(mean)  # type: ignore[union-attr]
            self.running_var.copy_(var)  # type: ignore[union-attr]
        return y


def _computed_again() -> bool:
    """Whether this is a part that gradient checkpointing computes again: one inside of a backward pass."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class StarReLU(nn.Module):
    """``scale · relu(x)² + bias``, both trained."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale.to(x.dtype) * F.relu(x).square() + self.bias.to(x.dtype)


class GlobalModulation(nn.Module):
    """The global branch.

    Args:
        channels: ``(Ci, Co)``.
        taps: ``k1 k2``; there is no head for 1.
        gains: ``(copies, n)``.
        width: h.
        norm: see `HiddenNorm`; with ``rms``, the authors' variant for language models, the activation is a plain ReLU.
        only_gains: whether the head of the groups is the only one.
        gate: of the factors.
        temperatures: of the factors, and of the groups' gains.
    """

    def __init__(
        self,
        channels: tuple[int, int],
        taps: int,
        gains: tuple[int, int],
        width: int,
        norm: str,
        only_gains: bool,
        gate: Gate,
        temperatures: tuple[float, float],
    ) -> None:
        super().__init__()
        self.shape, self.gate, self.temperatures = gains, gate, temperatures
        self.gain_gate = Gate(2.0, gate.slope)  # not m
        self.squeeze = nn.Linear(channels[0], width, bias=False)  # `fc` is the name of heads, which PEFT looks for
        self.norm = HiddenNorm(norm, width)
        self.star = nn.ReLU() if norm == "rms" else StarReLU()
        self.channel = None if only_gains else nn.Linear(width, channels[0])
        self.filter = None if only_gains else nn.Linear(width, channels[1])
        self.spatial = None if only_gains or taps == 1 else nn.Linear(width, taps)
        self.kernel = nn.Linear(width, math.prod(gains))

    @property
    def heads(self) -> dict[str, nn.Linear]:
        """The heads that are there."""
        found = {"channel": self.channel, "filter": self.filter, "spatial": self.spatial, "kernel": self.kernel}
        return {name: head for name, head in found.items() if head is not None}

    def forward(self, pooled: Tensor) -> Factors:
        """The factors for the means ``[B, Ci]``."""
        hidden = self.star(self.norm(F.linear(pooled, self.squeeze.weight.to(pooled.dtype))))

        def logits(head: nn.Linear) -> Tensor:
            return F.linear(hidden, head.weight.to(hidden.dtype), head.bias.to(hidden.dtype))

        temperature, gain_temperature = self.temperatures
        channels, filters, taps = (
            None if head is None else self.gate(logits(head), temperature)
            for head in (self.channel, self.filter, self.spatial)
        )
        gains = self.gain_gate(logits(self.kernel), gain_temperature)
        return Factors(channels, filters, taps, gains.unflatten(-1, self.shape))


class LocalModulation(nn.Module):
    """The local branch: filters ``w [Co k1 k2, κ]`` that slide over the normalised means of the channels.

    Args:
        channels: Ci.
        maps: ``Co k1 k2``.
        gate: of the factors.
        norm: whether the means are normalised.
    """

    def __init__(self, channels: int, maps: int, gate: Gate, norm: bool = True) -> None:
        super().__init__()
        self.gate = gate
        self.norm = nn.LayerNorm(channels) if norm else None
        self.weight = nn.Parameter(torch.zeros(maps, reach(channels)))

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """What slides over what: ``[B, Ci]`` and the filters, the gate's slope in them."""
        weight = self.weight.to(pooled.dtype)
        if self.norm is not None:
            scale, shift = self.norm.weight.to(pooled.dtype), self.norm.bias.to(pooled.dtype)
            pooled = F.layer_norm(pooled, self.norm.normalized_shape, scale, shift, self.norm.eps)
        return pooled, weight if self.gate.slope == 1 else self.gate.slope * weight


def reach(channels: int) -> int:
    """κ, the odd width of the local branch for so many channels."""
    return round(math.log2(channels) / 2 + 0.5) // 2 * 2 + 1


def means(x: Tensor, axis: int) -> Tensor:
    """The mean of every channel of every sample, ``[B, Ci]``, in float32 at least; ``axis`` is that of the channels."""
    return at_least_float32(x).mean([i for i in range(1, x.ndim) if i != axis % x.ndim])
