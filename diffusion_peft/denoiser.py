"""The denoiser of a pipeline, which is what adapters are for."""

from __future__ import annotations

from typing import Any

from torch import nn

PARTS = ("unet", "transformer")  # what diffusers' pipelines call it


def denoiser(model: Any) -> nn.Module:
    """The denoiser of a diffusers pipeline; a model is its own.

    Raises:
        TypeError: a pipeline without one, or no model at all.
    """
    if isinstance(model, nn.Module):
        return model
    for part in PARTS:
        found = getattr(model, part, None)
        if isinstance(found, nn.Module):
            return found
    parts = [name for name, part in getattr(model, "components", {}).items() if isinstance(part, nn.Module)]
    has = f"; its models are {', '.join(parts)}" if parts else ""
    raise TypeError(f"{type(model).__name__} has no {' and no '.join(PARTS)} to adapt{has}")
