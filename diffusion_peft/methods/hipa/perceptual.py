"""Distances of pictures as seen by a frozen model: DISTS, LPIPS, the features of any timm model, or none (`mse`).

Each takes pictures `[N, 3, H, W]` in [0, 1] (not clamped), twice, and gives `[N]`; gradients go to the first.
"""

from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F

from peft_kernels.data_errors import DataError, unknown
from peft_kernels.ops import structure_texture_distance
from peft_kernels.registry import methods

NAMES = ("dists", "lpips", "mse")
FOLDER = "local-dir:"
LEAST = 32  # pixels along a side that VGG16's five poolings leave something of


def spatial_distance(name: str) -> nn.Module:
    """The distance of this name, its weights frozen.

    Raises:
        UnknownNameError: it is none of `NAMES`, nor a model of timm; the nearest is told.
        DataError: its weights are not on this machine.
    """
    if name == "mse":
        return MeanSquare()
    methods()  # packages that offer methods register their models with timm as well (`vit_mini`)
    try:
        if name == "lpips":
            return Lpips().requires_grad_(False)
        if name == "dists":
            return dists().requires_grad_(False)
        if not (timm.is_model(name.partition(".")[0]) or name.startswith((FOLDER, "hf-hub:", "hf_hub:"))):
            raise unknown("spatial distance", name, (*NAMES, *timm.list_models()))
        return of_timm(name).requires_grad_(False)
    except DataError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"the spatial distance {name!r} needs weights that are not on this machine ({reason}): name a timm model "
            "that is, such as vit_mini, or mse"
        ) from None


def resized(pictures: Tensor, side: int | None) -> Tensor:
    """Pictures with a shorter side of at most `side` pixels."""
    least = min(pictures.shape[-2:])
    if side is None or least <= side:
        return pictures
    size = [round(length * side / least) for length in pictures.shape[-2:]]
    return F.interpolate(pictures, size, mode="bicubic", antialias=True)


class MeanSquare(nn.Module):
    """The mean squared difference of pixels: no model at all."""

    def forward(self, found: Tensor, wanted: Tensor) -> Tensor:
        return (found - wanted).square().flatten(1).mean(1)


class StructureTexture(nn.Module):
    """DISTS' statistic on the stages of a model, the pictures themselves being the first.

    Args:
        stages: pictures to the features of each stage, `[N, C_i, h_i, w_i]`.
        alpha: weights of each stage's textures, `[C_i]`; all the same when not given.
        beta: weights of each stage's structures.
        least: pixels along a side that it needs.
    """

    def __init__(
        self,
        stages: Callable[[Tensor], list[Tensor]],
        alpha: list[Tensor] | None = None,
        beta: list[Tensor] | None = None,
        least: int = 1,
    ):
        super().__init__()
        self.stages, self.alpha, self.beta, self.least = stages, alpha, beta, least
        if isinstance(stages, nn.Module):
            stages.eval()

    def train(self, mode: bool = True) -> "StructureTexture":
        """Nothing that judges is ever in training mode."""
        return super().train(False)

    def forward(self, found: Tensor, wanted: Tensor) -> Tensor:
        if min(found.shape[-2:]) < self.least:
            raise ValueError(f"this distance needs pictures of {self.least} pixels; found {list(found.shape)}")
        with torch.no_grad():
            seen = self.stages(wanted)
        features = self.stages(found)
        alpha, beta = self.alpha, self.beta
        if alpha is None or beta is None:
            alpha = beta = [stage.new_ones(stage.shape[1]) for stage in features]
        alpha, beta = ([weights.to(found) for weights in stages] for stages in (alpha, beta))
        return structure_texture_distance(features, seen, alpha, beta)


def dists() -> StructureTexture:
    """The published distance: VGG16 with L2 pooling, and the weights that were fitted to what people see."""
    from torchmetrics.functional.image.dists import DISTSNetwork

    network = DISTSNetwork()
    alpha, beta = (list(w.detach().flatten().split(network.chns)) for w in (network.alpha, network.beta))
    return StructureTexture(VggStages(network), alpha, beta, LEAST)


class VggStages(nn.Module):
    """What DISTS compares of VGG16."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor) -> list[Tensor]:
        return self.network.forward_once(pictures)


class Lpips(nn.Module):
    """Zhang et al., *The Unreasonable Effectiveness of Deep Features as a Perceptual Metric*, CVPR 2018; VGG16."""

    def __init__(self):
        super().__init__()
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        # Its network: the metric itself takes no pictures that leave [0, 1], as unclamped ones do.
        self.network = LearnedPerceptualImagePatchSimilarity(net_type="vgg").net

    def forward(self, found: Tensor, wanted: Tensor) -> Tensor:
        if min(found.shape[-2:]) < LEAST:
            raise ValueError(f"lpips needs pictures of {LEAST} pixels; found {list(found.shape)}")
        return self.network(found, wanted, normalize=True).flatten()


class TimmStages(nn.Module):
    """The pictures, and the intermediate features of a timm model that sees them at its own size."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        settings = resolve_model_data_config(model)
        self.size: tuple[int, int] | None = settings["input_size"][1:] if fixed_size(model) else None
        self.register_buffer("mean", torch.tensor(settings["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(settings["std"]).view(3, 1, 1), persistent=False)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        seen = pictures
        if self.size is not None and tuple(pictures.shape[-2:]) != self.size:
            seen = F.interpolate(pictures, self.size, mode="bicubic", antialias=True)
        seen = (seen - self.mean) / self.std
        return [pictures, *self.model.forward_intermediates(seen, intermediates_only=True, output_fmt="NCHW")]


def fixed_size(model: Any) -> bool:
    """Whether a timm model takes pictures of one size only."""
    return bool(model.pretrained_cfg.get("fixed_input_size", False))


def of_timm(name: str) -> StructureTexture:
    """The features of a timm model, all of one weight.

    Raises:
        DataError: the model does not hand out its features.
    """
    model: Any = timm.create_model(name, pretrained=True, num_classes=0)
    if not hasattr(model, "forward_intermediates"):
        raise DataError(f"timm's {name} does not hand out its features: name another model")
    return StructureTexture(TimmStages(model))
