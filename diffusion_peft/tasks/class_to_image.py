"""Class to image: a diffusion transformer (Peebles & Xie, *Scalable Diffusion Models with Transformers*, ICCV 2023)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from diffusion_peft.data.drawn import Drawn
from diffusion_peft.data.groups import group_of
from diffusion_peft.pipelines.assemble import write_class_pipeline
from diffusion_peft.tasks.denoising import Averaged
from diffusion_peft.tasks.latent_diffusion import DenoisingSpec, LatentDiffusion

NO_CLASS = 1000  # `DiTPipeline` has this number for "any class", whatever the number of classes is


@dataclass(frozen=True)
class ClassToImageSpec(DenoisingSpec):
    """The transformer.

    Attributes:
        heads: of every attention.
        head_width: channels of each head.
        layers: blocks.
        patch_size: latents along a side that form one token.
    """

    heads: int = 4
    head_width: int = 28
    layers: int = 5
    patch_size: int = 1


class Classed(nn.Module):
    """The transformer as it is trained, with the average of its weights."""

    def __init__(self, transformer: DiTTransformer2DModel, ema_decay: float):
        super().__init__()
        self.transformer = transformer
        # Each block embeds the class by itself and would drop it by itself: the task drops it for all of them at once.
        for block in transformer.transformer_blocks:
            norm: Any = block.norm1
            norm.emb.class_embedder.dropout_prob = 0.0
        self.average = Averaged(self.parameters(), ema_decay)

    def forward(self, noised: Tensor, timesteps: Tensor, label: Tensor) -> Tensor:
        """The prediction `[N, C, h, w]` for noised latents of that shape, timesteps `[N]` and classes `[N]`."""
        return self.transformer(noised, timestep=timesteps, class_labels=label).sample


def start_as_identity(transformer: DiTTransformer2DModel) -> None:
    """The paper's start (adaLN-Zero, Sec. 3.2), which diffusers leaves to others: blocks add nothing at first."""
    norms: list[Any] = [block.norm1 for block in transformer.transformer_blocks]
    for layer in (*(norm.linear for norm in norms), transformer.proj_out_1, transformer.proj_out_2):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


class ClassToImage(LatentDiffusion):
    """Pretrains the transformer of a `DiTPipeline`; the classes are the groups of emoji, and words."""

    model_spec: ClassVar[type] = ClassToImageSpec
    condition = "label"

    def build_model(self) -> Classed:
        """The transformer, with random weights."""
        spec = self.model_settings
        transformer = DiTTransformer2DModel(
            num_attention_heads=spec.heads,
            attention_head_dim=spec.head_width,
            in_channels=self.channels,
            out_channels=self.channels,
            num_layers=spec.layers,
            sample_size=self.latent_size,
            patch_size=spec.patch_size,
            num_embeds_ada_norm=NO_CLASS,
        )
        start_as_identity(transformer)
        return Classed(transformer, spec.ema_decay)

    def take(self, drawn: Drawn) -> dict[str, Tensor]:
        return {"label": torch.tensor(group_of(drawn.codepoints))}

    def mark(self) -> str:
        return "class"

    def dropped(self, condition: Tensor) -> Tensor:
        left_out = torch.rand(len(condition), device=condition.device) < self.model_settings.dropout
        return torch.where(left_out, NO_CLASS, condition)

    def write(self, model: Classed, folder: Path) -> None:
        """The `DiTPipeline` of the averaged weights."""
        with model.average.in_place_of(model.parameters()):
            write_class_pipeline(model.transformer, self.vae, self.scheduler, folder)
