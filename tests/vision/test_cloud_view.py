"""What a person sees of a cloud: its spectrum, the cloud from a part of it, and a model's view of it."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from peft import get_peft_model

import vision_peft as vp

from .tiny_clouds import adapted, clouds, tiny


def test_all_components_give_the_cloud_and_more_come_closer() -> None:
    points = clouds(1, 60)[0]
    spectrum = vp.cloud_spectrum(points)
    assert (spectrum.frequencies.diff() >= 0).all()
    torch.testing.assert_close(spectrum.rebuilt(60), points, rtol=0, atol=1e-5)
    errors = [(spectrum.rebuilt(k) - points).square().sum().item() for k in (1, 5, 20, 40, 60)]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < 0.9 * errors[0]


def test_energies_are_shares_and_of_a_component_its_own() -> None:
    spectrum = vp.cloud_spectrum(clouds(1, 60)[0])
    energy = spectrum.energy(torch.randn(60, 7, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(energy.sum(), torch.tensor(1.0))
    assert (energy >= 0).all()
    assert spectrum.energy(spectrum.basis[:, 5:6] + 3).argmax() == 5
    assert not spectrum.energy(torch.ones(60, 2)).isnan().any()


@pytest.mark.parametrize("name", ["point_mae", "point_gpt_s"])
def test_the_view_of_an_adapted_model(name: str) -> None:
    model = adapted(name, laplacian="combinatorial")
    model.train()
    model.get_submodule("base_model.model.encoder").eval()
    modes = [module.training for module in model.modules()]
    view = vp.view_cloud(model, cloud := clouds(1)[0])
    assert [module.training for module in model.modules()] == modes
    torch.testing.assert_close(view.logits, model.eval()(cloud[None])[0])
    assert view.features.shape == (8, 24)
    torch.testing.assert_close(view.energy, view.spectrum.energy(view.features))
    assert view.spectrum.frequencies[-1] > 2  # the combinatorial graph that the adapters read, not the normalised one
    rows = {tuple(point) for point in cloud.tolist()}
    assert {tuple(center) for center in view.spectrum.points.tolist()} <= rows


def test_models_without_spectral_adapters_have_a_view_too() -> None:
    model, cloud = tiny(), clouds(1)[0]
    view = vp.view_cloud(model, cloud)
    torch.testing.assert_close(view.logits, model(cloud[None])[0])
    assert view.spectrum.frequencies[-1] < 2
    lora: Any = get_peft_model(tiny(), vp.PointGstConfig(r=4, local_size=4))  # type: ignore[arg-type]
    with lora.disable_adapter():
        torch.testing.assert_close(vp.view_cloud(lora, cloud).logits, view.logits)


def test_what_has_no_view_is_told() -> None:
    with pytest.raises(ValueError, match="VisionTransformer is no classifier of clouds"):
        vp.view_cloud(timm.create_model("vit_mini"), clouds(1)[0])
    with pytest.raises(ValueError, match="the spectrum of 2049 points is too dear"):
        vp.cloud_spectrum(torch.rand(2049, 3))
    with pytest.raises(ValueError, match="k must be at least 1 and at most the number of components, 9; found 10"):
        vp.cloud_spectrum(torch.rand(9, 3)).rebuilt(10)
    with pytest.raises(ValueError, match="points must be finite"):
        vp.cloud_spectrum(torch.full((9, 3), torch.nan))
