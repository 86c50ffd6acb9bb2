"""The forward pass of a convolution or linear layer whose kernel is rebuilt for every sample."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peft_kernels.ops.fdconv import spectrum_of
from vision_peft.methods.fdconv.adapter import FrequencyDynamic
from vision_peft.methods.fdconv.modulation import means


class FrozenSpectrum:
    """The spectrum of a weight, computed again only where the weight has changed."""

    def __init__(self) -> None:
        self.kept: tuple[Any, Tensor] | None = None

    def of(self, weight: Tensor) -> Tensor:
        """``[P1, Q, 2]``; differentiable where the weight is trained."""
        four = weight if weight.ndim == 4 else weight[..., None, None]
        # A compiled graph sees no version of a tensor: there it is part of the graph.
        if torch.compiler.is_compiling() or (weight.requires_grad and torch.is_grad_enabled()):
            return spectrum_of(four)
        version = None if weight.is_inference() else weight._version
        key = (version, weight.data_ptr(), weight.device, weight.dtype)
        if self.kept is None or self.kept[0] != key:
            with torch.no_grad():
                self.kept = key, spectrum_of(four)
        return self.kept[1]


def _as_it_is(device: torch.device) -> AbstractContextManager[Any]:
    """Without autocast, which devices like `meta` do not have."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


def rebuilt(
    dynamic: FrequencyDynamic,
    base: nn.Module,
    x: Tensor,
    spectrum: Tensor | None,
    bias: Tensor | None,
    segments: Sequence[int] | None = None,
) -> Tensor:
    """The layer's output.

    Args:
        dynamic: what makes the kernels.
        base: the layer, which tells stride, padding and dilation, or that it is a linear one.
        x: its input.
        spectrum: of its weight, or ``None`` where `dynamic` has one of its own.
        bias: its bias, if any.
        segments: of a linear layer whose tokens are several sequences one after another, the length of each.
    """
    linear = isinstance(base, nn.Linear)
    if not len(x):  # the output's shape, from a kernel of zeros
        weight = x.new_zeros(dynamic.shape)
        plain: Any = base
        return F.linear(x, weight[..., 0, 0], bias) if linear else plain._conv_forward(x, weight, bias)
    if linear:
        return _linear(dynamic, x, spectrum, bias, segments)
    if x.ndim == 3:
        return rebuilt(dynamic, base, x[None], spectrum, bias)[0]
    out, channels, k1, k2 = dynamic.shape
    whole = out * channels * k1 * k2 < (channels + out) * x.shape[-2] * x.shape[-1]
    with _as_it_is(x.device):
        kernels, before, after = dynamic.kernels(means(x, 1), spectrum, whole)
    if dynamic.fbm is not None:
        x = dynamic.fbm(x)
    if before is not None:
        x = x * before[:, :, None, None].to(x.dtype)
    if after is None:
        return _convolution(base, x, kernels, bias)
    y = _convolution(base, x, kernels, None)  # under autocast not of the input's dtype
    y = y * after[:, :, None, None].to(y.dtype)
    return y if bias is None else y + bias.to(y.dtype)[:, None, None]


def _convolution(base: Any, x: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
    """Every sample with its own kernel: one grouped convolution."""
    padding = base.padding
    if base.padding_mode != "zeros":
        x, padding = F.pad(x, base._reversed_padding_repeated_twice, mode=base.padding_mode), 0
    samples = len(x)
    biases = None if bias is None else bias.to(x.dtype).repeat(samples)
    y = F.conv2d(
        x.reshape(1, -1, *x.shape[2:]), kernels.to(x.dtype).flatten(0, 1), biases,
        base.stride, padding, base.dilation, samples,
    )  # fmt: skip
    return y.view(samples, -1, *y.shape[2:])


def _linear(
    dynamic: FrequencyDynamic,
    x: Tensor,
    spectrum: Tensor | None,
    bias: Tensor | None,
    segments: Sequence[int] | None = None,
) -> Tensor:
    """The mean is over all axes between the first and the last, or over the tokens of each segment."""
    if x.ndim == 1:
        return _linear(dynamic, x[None], spectrum, bias)[0]
    kept: Tensor | None = None
    if segments is None:
        tokens = x.flatten(1, -2) if x.ndim > 2 else x[:, None]
        pooled = means(tokens, -1)
    else:
        tokens, kept = _apart(x.flatten(0, -2), segments)
        pooled = tokens.sum(1) / kept.sum(1, keepdim=True).clamp_min(1).to(tokens.dtype)
    out, channels = dynamic.shape[:2]
    whole = out * channels < (channels + out) * tokens.shape[1]
    with _as_it_is(x.device):
        kernels, before, after = dynamic.kernels(pooled, spectrum, whole)
    if before is not None:
        tokens = tokens * before[:, None].to(tokens.dtype)
    y = torch.bmm(tokens, kernels[..., 0, 0].to(tokens.dtype).transpose(1, 2))
    if after is not None:
        y = y * after[:, None].to(y.dtype)
    y = y if bias is None else y + bias.to(y.dtype)
    return (y if kept is None else y[kept]).view(*x.shape[:-1], -1)


def _apart(tokens: Tensor, segments: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The segments beside each other, filled up with zeros, and where their own tokens are."""
    if sum(segments) != len(tokens) or min(segments, default=0) < 0:
        raise ValueError(f"segments must be the lengths of sequences of {len(tokens)} tokens; found {list(segments)}")
    lengths = torch.tensor(segments, device=tokens.device)
    padded = nn.utils.rnn.pad_sequence(list(tokens.split(list(segments))), batch_first=True)
    return padded, torch.arange(padded.shape[1], device=tokens.device) < lengths[:, None]
