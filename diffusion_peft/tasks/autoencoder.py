"""The autoencoder of latent diffusion: pictures into a small grid of latents and back.

The loss is the mean absolute difference of pictures and of their horizontal and vertical differences on several scales
(edges weigh as much as areas, so that letters stay sharp), and a little of the Kullback-Leibler divergence from a
standard normal (Rombach et al., *High-Resolution Image Synthesis with Latent Diffusion Models*, CVPR 2022, Sec. 3.1).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from diffusion_peft.data.drawn import DrawnPictures
from diffusion_peft.data.tokenizer import train_tokenizer
from diffusion_peft.pipelines.assemble import write_vae
from diffusion_peft.tasks.drawing import DataSpec, open_pictures

SCALES = 3
EDGES = 2.0  # weight of the differences between neighbours


@dataclass(frozen=True)
class AutoencoderSpec:
    """The autoencoder.

    Attributes:
        widths: channels at full, half, quarter, ... size; each further entry halves the grid of latents.
        layers: residual blocks at each size (the decoder has one more).
        latent_channels: channels of the latents.
        groups: of the group norms; divides every width.
        kl_weight: of the divergence, against the mean absolute difference of pixels.
    """

    widths: tuple[int, ...] = (16, 32, 64, 64)
    layers: int = 1
    latent_channels: int = 8
    groups: int = 8
    kl_weight: float = 1e-4

    def __post_init__(self) -> None:
        if any(width % self.groups for width in self.widths):
            raise ValueError(f"model.groups {self.groups} must divide every width, found {self.widths}")


class Reconstructing(nn.Module):
    """An autoencoder as it is trained: pictures to pictures through a sample of the posterior."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstructions `[N, 3, H, W]` and each picture's divergence per latent number `[N]`.

        Latents are sampled while training, and the posterior's mode otherwise.
        """
        posterior = self.vae.encode(images).latent_dist  # type: ignore[union-attr]
        latents = posterior.sample() if self.training else posterior.mode()
        return self.vae.decode(latents).sample, posterior.kl() / latents[0].numel()  # type: ignore[union-attr]


def picture_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute difference of pixels and, on halved sizes too, of neighbours' differences; `[]`."""
    total = F.l1_loss(found, wanted)
    for _ in range(SCALES):
        total = total + EDGES / SCALES * (
            F.l1_loss(found.diff(dim=-1), wanted.diff(dim=-1)) + F.l1_loss(found.diff(dim=-2), wanted.diff(dim=-2))
        )
        found, wanted = F.avg_pool2d(found, 2), F.avg_pool2d(wanted, 2)
    return total


class Autoencoding:
    """Trains an `AutoencoderKL` on emoji and words; judged by the peak signal-to-noise ratio on held-out emoji."""

    model_spec: ClassVar[type] = AutoencoderSpec
    data_spec: ClassVar[type] = DataSpec
    metric: ClassVar[str] = "psnr"

    def __init__(
        self,
        model: AutoencoderSpec,
        data: DataSpec,
        seed: int,
        told: Callable[[str, int, int], None] | None = None,
    ):
        self.model_settings = model
        self.data = data
        self.seed = seed
        self.told = told

    def build_model(self) -> Reconstructing:
        spec = self.model_settings
        levels: dict[str, Any] = {
            "block_out_channels": spec.widths,
            "down_block_types": ("DownEncoderBlock2D",) * len(spec.widths),
            "up_block_types": ("UpDecoderBlock2D",) * len(spec.widths),
        }
        vae = AutoencoderKL(
            **levels,
            layers_per_block=spec.layers,
            latent_channels=spec.latent_channels,
            norm_num_groups=spec.groups,
            sample_size=self.data.size,
        )
        return Reconstructing(vae)

    def training_data(self, model: nn.Module) -> DrawnPictures:
        return open_pictures(self.data, "train", self.seed, self.told)

    def test_data(self, model: nn.Module) -> DrawnPictures:
        return open_pictures(self.data, "test", self.seed, self.told)

    def loss(self, model: Callable[[Tensor], tuple[Tensor, Tensor]], batch: dict[str, Tensor]) -> Tensor:
        """The batch's mean loss, float32 `[]`."""
        found, divergence = model(batch["image"])
        return picture_loss(found.float(), batch["image"]) + self.model_settings.kl_weight * divergence.mean()

    def evaluate(
        self, model: Callable[[Tensor], tuple[Tensor, Tensor]], batches: Iterable[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Sums over the pictures: squared and absolute error per number, divergence and `count`, float64 `[]`."""
        sums = {name: torch.zeros((), dtype=torch.float64) for name in ("squared", "absolute", "divergence", "count")}
        for batch in batches:
            found, divergence = model(batch["image"])
            error = (found.float() - batch["image"]).double().cpu().flatten(1) / 2  # of a range from 0 to 1
            sums["squared"] += error.square().mean(1).sum()
            sums["absolute"] += error.abs().mean(1).sum()
            sums["divergence"] += divergence.double().sum().cpu()
            sums["count"] += len(error)
        return sums

    def figures(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """`psnr` in dB of the mean squared error, `absolute` mean error of pixels in [0, 1], and `divergence`."""
        means = {name: total.item() / sums["count"].item() for name, total in sums.items() if name != "count"}
        psnr = -10 * torch.tensor(max(means["squared"], 1e-12)).log10().item()
        return {"psnr": psnr, "absolute": means["absolute"], "divergence": means["divergence"]}

    def head(self, model: nn.Module) -> list[str]:
        """Nothing: an autoencoder has no part that every adaptation trains anew."""
        return []

    def write(self, model: Reconstructing, folder: Path) -> None:
        """What the other tasks stand on, in diffusers' layout: `vae`, and the `tokenizer` of the captions."""
        pictures = self.training_data(model)
        train_tokenizer(pictures.all_captions()).save_pretrained(folder / "tokenizer")
        batches = DataLoader(pictures, batch_size=64, sampler=[(0, index) for index in range(len(pictures))])
        with torch.no_grad():
            latents = (model.vae.encode(batch["image"]).latent_dist.mode() for batch in batches)  # type: ignore[union-attr]
            write_vae(model.vae, latents, folder)
