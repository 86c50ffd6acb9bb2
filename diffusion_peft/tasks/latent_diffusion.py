"""What tasks have in common that train a model to remove noise from latents: data, loss, averaged weights, judging."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from diffusion_peft.data.drawn import Drawn
from diffusion_peft.data.emoji import Part
from diffusion_peft.data.latents import LatentPictures
from diffusion_peft.tasks.denoising import (
    denoising_loss,
    explained,
    fixed_draws,
    make_scheduler,
    spread_timesteps,
    squared_errors,
)
from diffusion_peft.tasks.encoding import LatentSpec, frozen_vae, latent_pictures


@dataclass(frozen=True)
class DenoisingSpec:
    """How a model learns to remove noise.

    Attributes:
        parts: folder with `vae` and `tokenizer`, which are there already; null takes those of the embedded mini_sd.
        prediction_type: what the model predicts: `epsilon` or `v_prediction`.
        snr_gamma: cut of the Min-SNR weights; null leaves the loss unweighted.
        dropout: share of the samples whose caption or class is left out, so that sampling can be guided.
        ema_decay: of the averaged weights, which are judged and kept.
    """

    parts: str | None = None
    prediction_type: Literal["epsilon", "v_prediction"] = "v_prediction"
    snr_gamma: float | None = 5.0
    dropout: float = 0.1
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        for name in ("dropout", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be in [0, 1), found {getattr(self, name)!r}")
        if self.snr_gamma is not None and self.snr_gamma <= 0:
            raise ValueError(f"model.snr_gamma must be above 0 or null, found {self.snr_gamma!r}")


class LatentDiffusion:
    """Trains `model(noised, timesteps, condition)`; judged by the share of its target that the model explains.

    The model holds an `Averaged` of its weights as `average`. A task names the sample's `condition`.
    """

    data_spec: ClassVar[type] = LatentSpec
    metric: ClassVar[str] = "explained"
    condition: ClassVar[str]

    def __init__(self, model: Any, data: LatentSpec, seed: int, told: Callable[[str, int, int], None] | None = None):
        self.model_settings = model
        self.data = data
        self.seed = seed
        self.told = told
        self.vae = frozen_vae(model.parts)
        self.channels: int = self.vae.config["latent_channels"]
        self.latent_size = data.size // 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        self.scheduler = make_scheduler(model.prediction_type)

    def take(self, drawn: Drawn) -> dict[str, Tensor]:
        """What a sample holds beside its latents."""
        raise NotImplementedError

    def mark(self) -> str:
        """Tells apart what different tasks take from the same pictures."""
        raise NotImplementedError

    def dropped(self, condition: Tensor) -> Tensor:
        """The conditions of a training batch, some of them left out (here none)."""
        return condition

    def training_data(self, model: nn.Module) -> LatentPictures:
        return self._pictures("train")

    def test_data(self, model: nn.Module) -> LatentPictures:
        return self._pictures("test")

    def _pictures(self, part: Part) -> LatentPictures:
        parts = self.model_settings.parts
        return latent_pictures(self.data, part, self.seed, parts, self.vae, self.take, self.mark(), self.told)

    def loss(self, model: Callable[[Tensor, Tensor, Tensor], Tensor], batch: dict[str, Tensor]) -> Tensor:
        """The batch's weighted mean squared error, float32 `[]`."""
        condition = self.dropped(batch[self.condition])
        return denoising_loss(
            lambda noised, timesteps: model(noised, timesteps, condition),
            self.scheduler,
            batch["latents"],
            self.model_settings.snr_gamma,
        )

    def after_step(self, model: Any, steps: int) -> None:
        """Renew the averaged weights; `steps` optimiser steps are done."""
        model.average.step(model.parameters(), steps)

    def evaluate(self, model: Any, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Sums over the samples, with the averaged weights: `error`, `target` (squares) and `count`, float64 `[]`."""
        sums = {name: torch.zeros((), dtype=torch.float64) for name in ("error", "target", "count")}
        with model.average.in_place_of(model.parameters()):
            for number, batch in enumerate(batches):
                latents, condition = batch["latents"], batch[self.condition]
                with fixed_draws(self.seed, number):
                    errors, squares = squared_errors(
                        lambda noised, timesteps, condition=condition: model(noised, timesteps, condition),
                        self.scheduler,
                        latents,
                        spread_timesteps(latents),
                    )
                sums["error"] += errors.double().sum().cpu()
                sums["target"] += squares.double().sum().cpu()
                sums["count"] += len(latents)
        return sums

    def figures(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """`explained` share of the target's squares, and `loss`, the mean squared error over all levels of noise."""
        return explained(sums)

    def head(self, model: nn.Module) -> list[str]:
        """Nothing that every adaptation trains anew."""
        return []
