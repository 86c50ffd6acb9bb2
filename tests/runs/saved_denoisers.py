"""A tiny pipeline's folder and a saved adapter of every method that its UNet takes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import diffusion_peft as dp
from diffusion_peft.pipelines.kinds import kind_of
from diffusion_peft.pipelines.opening import open_pipeline
from peft_kernels.registry import Method, methods
from peft_runs.merging_pipeline import probe
from tests.diffusion import tiny_pipelines

BASE = "base"
# At sizes that the tiny UNet has room for.
SMALL: dict[str, dict[str, Any]] = {
    "scale_long": {"reduction": 4},
    "fdconv": {"use_fdconv_if_c_gt": 0, "kernel_num": 2},
    "shira": {"r": 1},
    "spt": {"budget": 0.2, "budget_rule": "at_most", "scoring_mode": "eval"},
}


def outputs(pipeline: Any) -> Tensor:
    """What the pipeline's denoiser makes of noise."""
    kind = kind_of(pipeline)
    return probe(kind).of(kind, kind.denoiser)


def save_all(root: Path, kind: str = "sd1") -> dict[str, str]:
    """The pipeline in ``root/base``, an adapter of each method in ``root/<method>``; why a method has none."""
    tiny_pipelines.save(kind, root / BASE)
    refused = {}
    for name, method in methods().items():
        pipeline = open_pipeline(str(root / BASE))
        try:
            _save(method, pipeline, root / name)
        except ValueError as error:
            refused[name] = str(error)
    return refused


def _save(method: Method, pipeline: Any, folder: Path) -> None:
    denoiser = dp.denoiser(pipeline)
    config: Any = method.config(denoiser, **SMALL.get(method.name, {}))
    if method.choose is not None:
        kind = kind_of(pipeline)
        known = probe(kind)

        def loss(model: Any, batch: Tensor) -> Tensor:
            return kind.predict(model, batch, torch.tensor([100, 700]), known.given).square().mean()

        config = method.choose(config, denoiser, [known.latents], loss)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dp.add_adapter(pipeline, config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    dp.save_adapter(pipeline, folder)
