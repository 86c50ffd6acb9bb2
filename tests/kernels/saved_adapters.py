"""Small models, saved adapters of every method, and a picture of a model's structure to compare."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import vision_peft  # noqa: F401 (registers vit_mini and the methods)
from peft_kernels.registry import method, methods

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
GENERAL = sorted(name for name, known in methods().items() if not known.needs)  # those for any model


def small_model(**changes: Any) -> nn.Module:
    """A plain two-block transformer without pretrained weights; the same numbers at each call."""
    torch.manual_seed(1)
    return timm.create_model("vit_mini", **{"depth": 2, "num_classes": 10, **changes}).eval()


def pictures() -> Tensor:
    """Two pictures `[2, 3, 32, 32]`."""
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def configured(name: str, model: nn.Module, x: Tensor | None = None, **fields: Any) -> PeftConfig:
    """A method's configuration; one that looks at data has looked at ``x``, or at `pictures()`."""
    known = method(name)
    if known.choose is None:
        return known.config(model, **fields)
    x = pictures() if x is None else x
    asked = known.config(model, **{"budget": 0.2, "budget_rule": "at_most", "scoring_mode": "eval", **fields})
    return known.choose(asked, model, [x], lambda model, batch: model(batch).square().mean())


def trained(name: str, seed: int = 3, model: nn.Module | None = None, **fields: Any) -> PeftModel:
    """The method on a model, every trained parameter moved away from its start as training would."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = model or small_model()
        adapted = method(name).attach(model, configured(name, model, **fields)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return adapted


def saved(folder: Path, name: str, seed: int = 3, x: Tensor | None = None, **fields: Any) -> Tensor:
    """Save such an adapter in `folder`; its logits on `x`, or on `pictures()`."""
    adapted = trained(name, seed, **fields)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    with torch.no_grad():
        return adapted(pictures() if x is None else x)


def structure(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a failed change could leave behind, the numbers included."""
    return {
        "types": {name: type(module) for name, module in model.named_modules()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "attributes": {name: sorted(module.__dict__) for name, module in model.named_modules()},
        "hooks": {
            name: (len(module._forward_hooks), len(module._forward_pre_hooks)) for name, module in model.named_modules()
        },
        "flags": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "tensors": {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()},
    }


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a saved adapter."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def setting(folder: Path, **fields: object) -> None:
    """Change the configuration of a saved adapter."""
    values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(json.dumps({**values, **fields}), encoding="utf-8")
