"""The published denoisers have as many parameters as their papers' adapters were counted on, and the small ones run."""

from __future__ import annotations

import pytest
import torch

from .true_configs import ARCHITECTURES, predict, published, small


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_published_denoiser_has_its_number_of_parameters(name: str) -> None:
    assert sum(parameter.numel() for parameter in published(name).parameters()) == ARCHITECTURES[name].parameters


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_small_denoiser_has_the_forms_of_the_published_ones_modules_and_runs(name: str) -> None:
    def forms(model: torch.nn.Module) -> set[tuple[str, type]]:
        return {(".".join(p for p in key.split(".") if not p.isdigit()), type(m)) for key, m in model.named_modules()}

    model = small(name)
    assert forms(model) == forms(published(name))
    with torch.no_grad():
        out = predict(name, model)
    assert out.isfinite().all()
    assert out.std() > 1e-3
