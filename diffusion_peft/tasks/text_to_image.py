"""Text to image: a UNet with cross-attention and its text encoder, trained together on latents of captioned pictures.

Some captions are left out, so that sampling can be guided (Ho & Salimans, *Classifier-Free Diffusion Guidance*, 2021).
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import ClassVar

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffusion_peft.data.drawn import Drawn
from diffusion_peft.pipelines.assemble import write_text_pipeline
from diffusion_peft.tasks.denoising import Averaged
from diffusion_peft.tasks.encoding import LatentSpec, part_folder
from diffusion_peft.tasks.latent_diffusion import DenoisingSpec, LatentDiffusion


@dataclass(frozen=True)
class TextToImageSpec(DenoisingSpec):
    """UNet and text encoder.

    Attributes:
        start: a pipeline's folder whose UNet and text encoder are trained further, of whatever shape they are; null
            starts from nothing, with those that the other settings describe.
        widths: channels of the UNet at each size; each further entry halves the size.
        layers: residual blocks and attentions at each size (one more on the way up).
        heads: of every attention of the UNet.
        groups: of the group norms.
        text_width: channels of the text encoder.
        text_layers: its layers.
        text_heads: heads of its attentions.
    """

    start: str | None = None
    widths: tuple[int, ...] = (64, 80, 96)
    layers: int = 1
    heads: int = 4
    groups: int = 16
    text_width: int = 128
    text_layers: int = 3
    text_heads: int = 4


class Prompted(nn.Module):
    """UNet and text encoder as they are trained, with the average of their weights."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, ema_decay: float):
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder
        self.average = Averaged(self.parameters(), ema_decay)

    def forward(self, noised: Tensor, timesteps: Tensor, input_ids: Tensor) -> Tensor:
        """The prediction `[N, C, h, w]` for noised latents of that shape, timesteps `[N]` and tokens `[N, L]`."""
        return self.unet(noised, timesteps, self.text_encoder(input_ids)[0]).sample


class TextToImage(LatentDiffusion):
    """Pretrains the two models that a `StableDiffusionPipeline` needs beside autoencoder and tokenizer."""

    model_spec: ClassVar[type] = TextToImageSpec
    condition = "input_ids"

    def __init__(
        self,
        model: TextToImageSpec,
        data: LatentSpec,
        seed: int,
        told: Callable[[str, int, int], None] | None = None,
    ):
        super().__init__(model, data, seed, told)
        self.tokenizer = CLIPTokenizer.from_pretrained(part_folder(model.parts, "tokenizer"))
        self.no_caption = self.tokens("")

    def tokens(self, text: str) -> Tensor:
        """Token numbers of a caption, padded or cut to the tokenizer's length, int64 `[L]`."""
        length = self.tokenizer.model_max_length
        found = self.tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return found["input_ids"][0]

    def build_model(self) -> Prompted:
        """Both models, with random weights or those that training starts from."""
        spec = self.model_settings
        if spec.start is not None:
            unet = UNet2DConditionModel.from_pretrained(part_folder(spec.start, "unet", "start")).float()
            text_encoder = CLIPTextModel.from_pretrained(part_folder(spec.start, "text_encoder", "start")).float()
            return Prompted(unet.train(), text_encoder.train(), spec.ema_decay)
        unet = UNet2DConditionModel(
            sample_size=self.latent_size,
            in_channels=self.channels,
            out_channels=self.channels,
            block_out_channels=spec.widths,
            layers_per_block=spec.layers,
            down_block_types=("CrossAttnDownBlock2D",) * len(spec.widths),
            up_block_types=("CrossAttnUpBlock2D",) * len(spec.widths),
            cross_attention_dim=spec.text_width,
            attention_head_dim=spec.heads,  # diffusers' name for the number of heads
            norm_num_groups=spec.groups,
        )
        config = CLIPTextConfig(
            vocab_size=len(self.tokenizer),
            hidden_size=spec.text_width,
            intermediate_size=3 * spec.text_width,
            projection_dim=spec.text_width,
            num_hidden_layers=spec.text_layers,
            num_attention_heads=spec.text_heads,
            max_position_embeddings=self.tokenizer.model_max_length,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return Prompted(unet, CLIPTextModel(config), spec.ema_decay)

    def take(self, drawn: Drawn) -> dict[str, Tensor]:
        return {"input_ids": self.tokens(drawn.caption)}

    def mark(self) -> str:
        return "text " + sha256(self.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()

    def dropped(self, condition: Tensor) -> Tensor:
        left_out = torch.rand(len(condition), 1, device=condition.device) < self.model_settings.dropout
        return torch.where(left_out, self.no_caption.to(condition.device), condition)

    def write(self, model: Prompted, folder: Path) -> None:
        """The `StableDiffusionPipeline` of the averaged weights."""
        with model.average.in_place_of(model.parameters()):
            write_text_pipeline(model.unet, model.text_encoder, self.vae, self.tokenizer, self.scheduler, folder)
