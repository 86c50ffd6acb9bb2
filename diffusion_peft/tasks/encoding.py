"""What the diffusion tasks see of their data: latents of emoji and words by the frozen autoencoder."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from diffusers import AutoencoderKL
from torch import Tensor

from diffusion_peft.data.drawn import Drawn
from diffusion_peft.data.emoji import Part
from diffusion_peft.data.latents import LatentPictures
from diffusion_peft.embedded import ASSETS
from diffusion_peft.tasks.drawing import DataSpec, open_pictures
from peft_kernels.data_errors import DataError

VAE_FILE = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class LatentSpec(DataSpec):
    """Emoji and words as latents.

    Attributes:
        pool: epochs with pictures of their own; then they come again.
        cache: folder that keeps the latents for when the run goes on; null encodes them again.
    """

    pool: int = 12
    cache: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool < 1:
            raise ValueError(f"data.pool must be at least 1, found {self.pool}")


def part_folder(parts: str | None, name: str, setting: str = "parts") -> Path:
    """The folder of one part of a pipeline: below `parts`, or below the embedded mini_sd.

    Raises:
        DataError: it is not there; the `setting` of the recipe that names it is told.
    """
    folder = (ASSETS / "mini_sd" if parts is None else Path(parts).expanduser()) / name
    if not folder.is_dir():
        raise DataError(f"there is no {name} at {folder}: name the folder that holds it with --model.{setting}")
    return folder


def frozen_vae(parts: str | None) -> AutoencoderKL:
    """The autoencoder, in float32, which nothing trains."""
    return AutoencoderKL.from_pretrained(part_folder(parts, "vae")).float().eval().requires_grad_(False)


def latent_pictures(
    spec: LatentSpec,
    part: Part,
    seed: int,
    parts: str | None,
    vae: AutoencoderKL,
    take: Callable[[Drawn], dict[str, Tensor]],
    mark: str,
    told: Callable[[str, int, int], None] | None,
) -> LatentPictures:
    """The latents of one part, scaled as the autoencoder's configuration says; the test part never varies.

    `take` gives what a sample holds beside its latents, and `mark` tells its kind: a cache of another is refused.
    """
    factor = vae.config["scaling_factor"]
    weights = part_folder(parts, "vae") / VAE_FILE
    settings = {key: value for key, value in asdict(spec).items() if key not in ("root", "cache")}
    about = {**settings, "part": part, "seed": seed, "mark": mark, "vae": sha256(weights.read_bytes()).hexdigest()}
    return LatentPictures(
        open_pictures(spec, part, seed, told, take),
        lambda images: vae.encode(images).latent_dist.mode() * factor,  # type: ignore[union-attr]
        spec.pool if part == "train" else 1,
        about,
        None if spec.cache is None else Path(spec.cache).expanduser() / f"latents_{part}.safetensors",
        told,
    )
