"""PEFT's own methods load through the same checks, and types are cast to the model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from peft_kernels.loading import load_adapter

from .saved_adapters import edit

PARTS: Any = {"target_modules": ["first", "second"], "modules_to_save": ["head"]}
CONFIGS = {
    "LoRA with biases": peft.LoraConfig(bias="all", **PARTS),
    "rsLoRA": peft.LoraConfig(use_rslora=True, **PARTS),
    "PiSSA": peft.LoraConfig(init_lora_weights="pissa", **PARTS),
    "AdaLoRA": peft.AdaLoraConfig(total_step=10, **PARTS),
    "IA3": peft.IA3Config(feedforward_modules=[], **PARTS),
    "LoHa": peft.LoHaConfig(**PARTS),
    "LoKr": peft.LoKrConfig(**PARTS),
    "OFT": peft.OFTConfig(oft_block_size=4, r=0, **PARTS),
    "VeRA": peft.VeraConfig(**PARTS),
    "FourierFT": peft.FourierFTConfig(n_frequency=10, **PARTS),
    "SHiRA": peft.ShiraConfig(r=2, **PARTS),
}


def model(dtype: torch.dtype = torch.float32) -> Any:
    """Two layers and a head; the same numbers at each call."""
    torch.manual_seed(0)
    layers = {"first": nn.Linear(16, 32), "act": nn.GELU(), "second": nn.Linear(32, 16), "head": nn.Linear(16, 4)}
    made = nn.Sequential()
    for name, layer in layers.items():
        made.add_module(name, layer)
    return made.to(dtype)


def saved(folder: Path, config: peft.PeftConfig, x: Tensor) -> Tensor:
    """Save an adapter whose parameters were moved; its outputs."""
    adapted = peft.get_peft_model(model(), config).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        adapted.save_pretrained(str(folder), save_embedding_layers=False)
        return adapted(x)


@pytest.mark.parametrize("name", CONFIGS)
def test_own_methods_of_peft_reproduce_their_outputs(name: str, tmp_path: Path) -> None:
    x = torch.randn(3, 16)
    expected = saved(tmp_path, CONFIGS[name], x)
    torch.testing.assert_close(load_adapter(model(), tmp_path)(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_types_are_cast_to_the_models(dtype: torch.dtype, tmp_path: Path) -> None:
    x = torch.randn(3, 16)
    expected = saved(tmp_path, peft.LoraConfig(**PARTS), x)
    error = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float64: 1e-6}[dtype]
    found = load_adapter(model(dtype), tmp_path)(x.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=10 * error)
    edit(tmp_path, lambda tensors: tensors.update({key: t.to(dtype) for key, t in tensors.items()}))
    torch.testing.assert_close(load_adapter(model(), tmp_path)(x), expected, rtol=0, atol=error)
