"""Small denoisers and a vision transformer with DiffFit, as its tests need them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import timm
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

import diffusion_peft as dp
from tests.diffusion.true_configs import ARCHITECTURES, small

DENOISERS = ("dit", "pixart", "sd3", "flux", "sd15")
MODELS = (*DENOISERS, "vit")
# Sites that each has beside those of the default.
MORE_SITES = {
    "dit": ["q", "k", "v", "o", "ffn_hidden", "ffn"],
    "pixart": ["cross_out", "q", "o", "ffn_hidden"],
    "sd15": ["cross_out", "q", "k", "v", "o", "ffn_hidden"],
    "sd3": ["q", "k", "v", "o", "ffn_hidden"],
    "flux": ["single_out", "q", "ffn_hidden"],
    "vit": ["q", "k", "v", "o", "ffn_hidden"],
}


def base(name: str) -> Any:
    """A model in which no tensor is zero; the same bits at each call."""
    if name != "vit":
        return small(name)
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=3, num_heads=2, num_classes=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def run(name: str, model: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """The output on a fixed batch in the model's dtype."""
    if name != "vit":
        inputs = ARCHITECTURES[name].inputs()
        cast = {key: v.to(dtype) if v.is_floating_point() else v for key, v in inputs.items() if isinstance(v, Tensor)}
        return model(**{**inputs, **cast}).sample
    return model(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(dtype))


def everything(name: str, **fields: Any) -> dp.DiffFitConfig:
    """All sites in all blocks, unless the fields say otherwise."""
    sites = ["attn_out", "ffn_out", *MORE_SITES[name]]
    return dp.DiffFitConfig(**{"gamma_sites": sites, "gamma_blocks": "all", "modules_to_save": [], **fields})


def attach(model: nn.Module, config: dp.DiffFitConfig) -> PeftModel:
    """The model with a new adapter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the .* adapter of .* more than the")  # these are tiny
        return get_peft_model(model, config)  # type: ignore[arg-type,return-value]


@torch.no_grad()
def move(model: nn.Module, adapter: str = "default", by: float = 0.1) -> None:
    """Move the adapter's parameters as training would, differently for each name."""
    generator = torch.Generator().manual_seed(len(adapter))
    for name, parameter in model.named_parameters():
        if adapter in name.split("."):
            parameter.add_(by * torch.randn(parameter.shape, generator=generator).to(parameter))


def gradients(model: nn.Module, forward: Callable[[], Tensor]) -> dict[str, Tensor]:
    """The gradient of every trainable parameter for a fixed gradient of the output."""
    model.zero_grad(set_to_none=True)
    y = forward()
    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(5)).to(y)).sum().backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert all(gradient is not None for gradient in found.values()), [n for n, g in found.items() if g is None]
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}
