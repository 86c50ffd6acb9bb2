"""Small models with every kind of tensor that SaRA trains, and what training them takes."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from diffusion_peft import SaraConfig
from diffusion_peft.methods.sara.layer import SaraLayer


class Mixed(nn.Module):
    """An embedding, a convolution, a norm, two linear layers with matrices above 64; some entries of each are small."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 70)
        self.conv = nn.Conv1d(1, 16, 3, padding=1)
        self.norm = nn.LayerNorm(70)
        self.up = nn.Linear(70, 80)
        self.down = nn.Linear(80, 66, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.conv(self.table(tokens)[:, None]).mean(1)
        return self.down(torch.relu(self.up(self.norm(x))))


def mixed(dtype: torch.dtype = torch.float32, seed: int = 0) -> Mixed:
    """The model, the same numbers at each call."""
    generator = torch.Generator().manual_seed(seed)
    model = Mixed()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.to(dtype).requires_grad_(False).eval()


def batch(seed: int = 1, size: int = 6) -> tuple[Tensor, Tensor]:
    """Tokens and targets."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(9, (size,), generator=generator), torch.randn(size, 66, generator=generator)


def adapted(dtype: torch.dtype = torch.float32, name: str = "default", **fields: Any) -> PeftModel:
    """The model with SaRA on all of it."""
    fields = {"modules_to_save": [], **fields}
    if not {"threshold", "density", "num_trainable"} & set(fields):
        fields["threshold"] = 0.03
    return get_peft_model(mixed(dtype), SaraConfig(**fields), name)  # type: ignore[return-value]


def loss_of(model: nn.Module, seed: int = 1) -> Tensor:
    """The loss on a batch."""
    tokens, target = batch(seed)
    y = model(tokens)
    return (y - target.to(y.dtype)).square().mean()


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def move(model: nn.Module, seed: int = 2, by: float = 0.05, adapter: str = "default") -> None:
    """Move the trained values, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith(f".{adapter}.values") or f".{adapter}.entries." in name:
            parameter.add_(by * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def in_force(model: nn.Module) -> dict[str, Tensor]:
    """All tensors of the adapted modules as they are in force."""
    return {
        f"{name}.{tensor}": layer.effective_tensor(tensor).detach().clone()  # type: ignore[union-attr]
        for name, layer in model.named_modules()
        if isinstance(layer, SaraLayer)
        for tensor in dict.fromkeys(t for a in layer.adapters.values() for t in a.tensors)  # type: ignore[union-attr]
    }
