"""Masked modelling of point clouds: how point transformers are pretrained without labels."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from vision_peft.data.clouds import CloudVariation
from vision_peft.models.point_masked import MaskedPoints
from vision_peft.models.point_transformer import MINI
from vision_peft.tasks.cloud_task import CloudDataSpec, CloudTask


@dataclass(frozen=True)
class MaskedSpec:
    """The encoder, of `point_mini`'s size where nothing else is said, and its decoder.

    Attributes:
        num_groups: patches of a cloud.
        group_size: points of a patch.
        embed_dim: width.
        depth: blocks of the encoder.
        num_heads: attention heads.
        encoder_widths: of the patch encoder's first stage.
        drop_path_rate: stochastic depth of the last block.
        decoder_depth: blocks of the decoder.
        mask_ratio: share of the patches that is hidden.
    """

    num_groups: int = MINI["num_groups"]
    group_size: int = MINI["group_size"]
    embed_dim: int = MINI["embed_dim"]
    depth: int = MINI["depth"]
    num_heads: int = MINI["num_heads"]
    encoder_widths: tuple[int, ...] = MINI["encoder_widths"]
    drop_path_rate: float = MINI["drop_path_rate"]
    decoder_depth: int = 2
    mask_ratio: float = 0.6


@dataclass(frozen=True)
class MaskedDataSpec(CloudDataSpec):
    """The clouds, whose classes have no part in it; see `CloudDataSpec`."""

    name: str = "surfaces"
    train_size: int | None = 7800
    test_size: int | None = 390
    variation: CloudVariation = field(default_factory=lambda: CloudVariation(scale=0.5, shift=0.2))


class MaskedClouds(CloudTask):
    """Hidden patches are rebuilt from the others; judged by how closely, in decibels: −10 log₁₀ of the loss."""

    model_spec: ClassVar[type] = MaskedSpec
    data_spec: ClassVar[type] = MaskedDataSpec
    metric: ClassVar[str] = "decibels"

    def build_model(self) -> MaskedPoints:
        """Encoder and decoder, untrained."""
        return MaskedPoints(**vars(self.model_settings))

    def loss(self, model: Callable[..., Tensor], batch: dict[str, Tensor]) -> Tensor:
        """Mean Chamfer distance of the hidden patches of a batch, float32 `[]`."""
        return model(batch["points"]).mean()

    def evaluate(self, model: Callable[..., Tensor], batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Sums over the batches, to be added up over processes: `loss` and `count`, float64 `[]`.

        What is hidden is the same in every evaluation.
        """
        loss, count = (torch.zeros((), dtype=torch.float64) for _ in range(2))
        for number, batch in enumerate(batches):
            points = batch["points"]
            chosen = torch.Generator(points.device).manual_seed(number)
            loss += model(points, chosen).sum().double().cpu()
            count += len(points)
        return {"loss": loss, "count": count}

    def figures(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Mean loss and its decibels from the sums of `evaluate`."""
        loss = sums["loss"].item() / sums["count"].item()
        return {"decibels": -10 * math.log10(loss), "loss": loss}

    def head(self, model: nn.Module) -> list[str]:
        """None: the decoder is no part of what is kept."""
        return []
