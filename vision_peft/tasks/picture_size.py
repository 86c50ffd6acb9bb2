"""Pictures of another size than a timm model's own."""

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
        DataError: the model cannot be made for that size.
    """
    make: Callable[..., nn.Module] = timm.create_model
    if img_size is None or not fixed_size(name):
        return make(name, **settings)
    try:
        return make(name, img_size=img_size, **settings)
    except (ValueError, TypeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{name} cannot be made for pictures of {img_size} pixels (model.img_size): {reason}"
        ) from error
