"""timm models for a task: for pictures of another size than their own, and what keeps them from being made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
from timm.models import get_pretrained_cfg_value
from torch import nn

from peft_kernels.data_errors import DataError


def fixed_size(name: str) -> bool:
    """Whether timm makes this model for pictures of one size."""
    return timm.is_model(name) and bool(get_pretrained_cfg_value(name, "fixed_input_size"))


def created(name: str, img_size: int | None, **settings: Any) -> nn.Module:
    """`timm.create_model`, for pictures of ``img_size``; models that take any size are as they are.

    Raises:
        DataError: the model cannot be made for that size, or its pretrained weights cannot be had.
    """
    make: Callable[..., nn.Module] = timm.create_model
    sized = img_size is not None and fixed_size(name)
    try:
        return make(name, **({"img_size": img_size} if sized else {}), **settings)
    except (ValueError, TypeError, AssertionError) as error:
        if not sized:
            raise
        what = f"{name} cannot be made for pictures of {img_size} pixels (model.img_size)"
        raise DataError(f"{what}: {_reason(error)}") from error
    except (OSError, RuntimeError) as error:
        if not settings.get("pretrained"):
            raise
        raise DataError(f"the pretrained weights of {name} cannot be loaded: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())
