"""The memory of training clouds, and the tokens that it gives for a cloud.

With ``f`` a cloud's feature and ``K`` those of the training clouds, all of length 1:

    tokens = [f, Σ_j softmax(s)_j K_j, K_1, ..., K_k],    s the k greatest similarities K f, and K_j their features
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peft_kernels.layer import AdapterLayer
from peft_kernels.tensors import OwnedTensors
from vision_peft.methods.patches import point_backbone


def memory_tokens(feature: Tensor, memory: Tensor, topk: int) -> Tensor:
    """Tokens ``[B, 2 + topk, C]`` for clouds with these features ``[B, C]``, from a memory ``[n, C]``."""
    similarity, index = (feature @ memory.mT).topk(topk)
    keys = memory[index]
    mean = similarity.softmax(-1)[:, None] @ keys
    return torch.cat([feature[:, None], mean, keys], 1)


@torch.no_grad()
def cloud_features(model: nn.Module, points: Tensor) -> Tensor:
    """Features ``[B, C]`` of clouds ``[B, N, 3]``, of length 1: mean and maximum of the patches' tokens, added.

    The model is read as it was before anything was adapted, in evaluation mode, and without its class token, which
    pretraining does not know.
    """
    backbone = point_backbone(model, "Point-PEFT")[1]
    return patch_features(backbone, *backbone.group_divider(points))


@torch.no_grad()
def patch_features(backbone: Any, patches: Tensor, centers: Tensor) -> Tensor:
    """`cloud_features` of clouds whose patches are known."""
    with _unadapted(backbone):
        tokens = backbone.reduce_dim(backbone.encoder(patches))
        x = backbone.norm(backbone.blocks(tokens, backbone.pos_embed(centers)))
    return F.normalize(x.mean(1) + x.amax(1), dim=-1)


@contextmanager
def _unadapted(backbone: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in backbone.modules()]
    adapted = [m for m, _ in modes if isinstance(m, (AdapterLayer, OwnedTensors)) and not m._disable_adapters]

    def switch(off: bool) -> None:
        for module in adapted:
            module._disable_adapters = off
            if isinstance(module, OwnedTensors):
                module.refresh(compute=not off)

    switch(True)
    backbone.eval()
    try:
        yield
    finally:
        switch(False)
        for module, training in modes:
            module.training = training


@torch.no_grad()
def made_memory(model: nn.Module, batches: Iterable[Any], loss: Callable[..., Any] | None) -> Tensor:
    """The features ``[n, C]`` of all clouds in ``batches``; the model is left as it was.

    Raises:
        ValueError: no point transformer, or no clouds.
    """
    backbone = point_backbone(model, "Point-PEFT")[1]
    found: list[Tensor] = []
    handle = backbone.group_divider.register_forward_hook(
        lambda module, args, output: found.append(patch_features(backbone, *output))
    )
    try:
        with _unadapted(model):
            for batch in batches:
                if loss is not None:
                    loss(model, batch)
                else:
                    backbone.group_divider(batch[0] if isinstance(batch, (tuple, list)) else batch)
    finally:
        handle.remove()
    if not found:
        raise ValueError("the memory of Point-PEFT is made of training clouds, and there are none")
    return torch.cat(found)


@contextmanager
def bound_features(model: nn.Module, features: Tensor) -> Iterator[None]:
    """Let forward passes of ``model`` inside look these features ``[B, C]`` up in the memory, not their own.

    So may another network give the features, the one of which the memory was made.

    Raises:
        ValueError: the model has no Point-PEFT adapter, or features of another width.
    """
    from vision_peft.methods.pointpeft.layer import GIVEN, PointPeftLayer

    layer = next((module for module in model.modules() if isinstance(module, PointPeftLayer)), None)
    if layer is None:
        raise ValueError(f"{type(model).__name__} has no Point-PEFT adapter, so nothing reads features")
    width = point_backbone(model, "Point-PEFT")[1].embed_dim
    if features.ndim != 2 or features.shape[1] != width:
        raise ValueError(f"features must be of shape [B, {width}]; found {list(features.shape)}")
    with layer.source.side.bind(**{GIVEN: F.normalize(features, dim=-1)}):
        yield
