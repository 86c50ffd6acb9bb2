"""What P2P trains (Wang et al., NeurIPS 2022): the painter, and of the image model norms, class token and head."""

from __future__ import annotations

from typing import Any

from torch import nn

from peft_kernels.config import MethodConfig
from peft_kernels.targets import head_names, plain_modules, raw_parameters
from vision_peft.methods.trained import FullConfig, LinearProbeConfig
from vision_peft.models.point_pixels import PointToPixel

_BATCH_NORM = nn.modules.batchnorm._BatchNorm


def painter_config(model: PointToPixel, **fields: Any) -> MethodConfig:
    """The configuration; norms are found by type, so that batch norms called ``bn`` are among them.

    DeiT-Ti, -S, -B with 40 classes: 101,195, 118,667 and 153,611 parameters.
    """
    inner = dict(plain_modules(model.image_model))
    norms = [f"image_model.{n}" for n, m in inner.items() if isinstance(m, (nn.LayerNorm, nn.GroupNorm))]
    batch = [f"image_model.{n}" for n, m in inner.items() if isinstance(m, _BATCH_NORM)]
    tokens = [f"image_model.{n}" for n in raw_parameters(model.image_model, []) if n == "cls_token"]
    saved = [*head_names(model), *tokens, *batch]  # batch norms whole, with their statistics
    if not norms:
        return LinearProbeConfig(modules_to_save=saved, **fields)
    return FullConfig(target_modules=norms, modules_to_save=saved, **fields)
