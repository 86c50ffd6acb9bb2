"""Small models and trained adapters for the tests of SPT."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import vision_peft as vp
from tests.kernels.saved_adapters import pictures

TOKEN = {"class_token": True, "global_pool": "token"}


def scores_of(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(p.shape, generator=generator) ** 4 for name, p in model.named_parameters()}


def config(model: nn.Module, seed: int = 0, **fields: Any) -> vp.SptConfig:
    asked = {"budget": 20_000, "budget_rule": "at_most", "module_dropout": 0.0, "module_drop_path": 0.0, **fields}
    return vp.SptConfig.from_scores(model, scores_of(model, seed), **asked)


def trained(adapted: Any, steps: int = 2) -> Any:
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], 1e-2, weight_decay=0.1)
    for _ in range(steps):
        adapted(pictures()).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return adapted.eval()
