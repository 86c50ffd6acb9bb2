"""A base model's file and a saved adapter of every method, for the commands that read adapters."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.kernels.saved_adapters import GENERAL, pictures, saved

MODEL = "vit_mini.cifar10"


def base(classes: int = 10, name: str = MODEL) -> nn.Module:
    """The plain model without pretrained weights, the same numbers at each call."""
    torch.manual_seed(5)
    return timm.create_model(name, num_classes=classes).eval()


def save_base(path: Path, name: str = MODEL) -> Path:
    """The plain model's file; its head has other classes than the adapters'."""
    model = base(name=name)
    head = {"head.weight": torch.zeros(3, model.num_features), "head.bias": torch.zeros(3)}  # type: ignore[arg-type]
    save_file({**model.state_dict(), **head}, path)
    return path


def save_all(root: Path) -> dict[str, Tensor]:
    """An adapter of each method in ``root/<method>`` and the base in ``root/base.safetensors``; their logits."""
    save_base(root / "base.safetensors")
    return {name: saved(root / name, name, model=base()) for name in GENERAL}


def outputs(model: nn.Module) -> Tensor:
    """The model's logits on the same pictures."""
    with torch.no_grad():
        return model.eval()(pictures())
