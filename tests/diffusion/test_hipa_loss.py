"""HiPA's loss sees what one step leaves out, by whichever distance is at hand."""

from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import diffusion_peft as dp
from diffusion_peft.methods.hipa.perceptual import Lpips, dists, resized, spatial_distance
from peft_kernels.data_errors import UnknownNameError
from peft_kernels.ops import clean_from
from tests.diffusion.tiny_pipelines import unet

PLAIN = dp.HipaLossSpec(spatial="mse")


def pictures(seed: int, size: int = 32) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def blurred(images: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def test_loss_is_the_weighted_sum_of_its_terms():
    spec = dp.HipaLossSpec(spatial="mse", lam_spatial=0.5, lam_high=3.0, fourier_weight=2.0, edge_weight=0.25)
    terms = dp.HipaLoss(spec)(pictures(0), pictures(1))
    expected = 0.5 * terms["spatial"] + 3.0 * (2.0 * terms["fourier"] + 0.25 * terms["edge"])
    torch.testing.assert_close(terms["loss"], expected)
    assert all(term > 0.001 for term in terms.values())


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({"fourier_weight": 0.0}, {"spatial", "edge"}),  # as in GarDiff
        ({"edge": "none"}, {"spatial", "fourier"}),
        ({"lam_high": 0.0}, {"spatial"}),
        ({"lam_spatial": 0.0}, {"fourier", "edge"}),
    ],
)
def test_terms_without_weight_are_left_out(fields, left):
    terms = dp.HipaLoss(dp.HipaLossSpec(spatial="mse", **fields))(pictures(0), pictures(1))
    assert set(terms) == left | {"loss"}


def test_a_distance_of_ones_own_is_taken():
    terms = dp.HipaLoss(PLAIN, lambda found, wanted: (found - wanted).abs().amax((1, 2, 3)))(pictures(0), pictures(1))
    torch.testing.assert_close(terms["spatial"], (pictures(0) - pictures(1)).abs().amax((1, 2, 3)).mean())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_float32_and_gradients_beyond_the_range(dtype):
    found = (3 * pictures(0) - 1).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        terms = dp.HipaLoss(PLAIN)(found, pictures(1).to(dtype))
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())
    terms["loss"].backward()
    outside = (found < 0) | (found > 1)
    assert outside.any()
    assert found.grad is not None
    assert found.grad[outside].abs().min() > 0


def test_features_of_the_embedded_model_tell_a_blur_from_the_picture():
    distance, sharp = spatial_distance("vit_mini"), pictures(0, 48)
    assert distance(sharp, sharp).abs().max() < 1e-5
    assert distance(blurred(sharp), sharp).min() > 10 * distance((sharp + 0.01), sharp).max() > 0
    found = sharp.clone().requires_grad_()
    distance(found, blurred(sharp)).sum().backward()
    assert found.grad is not None
    assert found.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in distance.parameters())


@pytest.fixture
def vgg(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """VGG16's layers with random weights, as torchmetrics would get them."""
    from torchmetrics.functional.image import dists, lpips
    from torchvision.models.vgg import cfgs, make_layers

    torch.manual_seed(0)
    layers = make_layers(cfgs["D"], batch_norm=False)
    monkeypatch.setattr(dists, "vgg16", lambda **_: SimpleNamespace(features=layers))
    monkeypatch.setattr(lpips, "_get_tv_model_features", lambda *_, **__: layers)
    return layers


def test_dists_is_torchmetrics_own_on_the_same_weights(vgg):
    from torchmetrics.functional.image.dists import DISTSNetwork

    found, wanted = pictures(0), pictures(1)
    expected = DISTSNetwork()(found, wanted)
    torch.testing.assert_close(dists()(found, wanted), expected, rtol=1e-3, atol=1e-4)


def test_lpips_takes_pictures_beyond_the_range_with_gradient(vgg):
    distance, found = Lpips().requires_grad_(False), (1.5 * pictures(0)).requires_grad_()
    distance(found, pictures(1)).sum().backward()
    assert found.grad is not None
    assert found.grad.abs().sum() > 0
    assert distance(pictures(1), pictures(1)).abs().max() == 0
    for small_one in (distance, dists()):
        with pytest.raises(ValueError, match=r"pictures of 32 pixels; found \[2, 3, 16, 16\]"):
            small_one(pictures(0, 16), pictures(1, 16))


@pytest.mark.parametrize("name", ["dists", "lpips"])
def test_weights_that_are_not_there_are_told_with_what_is(name, monkeypatch, tmp_path):
    def offline(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    # The real one builds 138 million weights before it asks for them.
    monkeypatch.setattr(torchvision.models, "vgg16", lambda weights, **_: weights.get_state_dict(progress=False))
    from torchmetrics.functional.image import dists as module

    monkeypatch.setattr(module, "vgg16", lambda weights, **_: weights.get_state_dict(progress=False))
    with pytest.raises(dp.DataError, match=f"'{name}' needs weights that are not on this machine.*vit_mini, or mse"):
        spatial_distance(name)


def test_larger_pictures_are_made_smaller_and_smaller_ones_are_not():
    assert resized(torch.zeros(1, 3, 40, 60), 20).shape == (1, 3, 20, 30)
    assert resized(torch.zeros(1, 3, 40, 60), 64).shape == (1, 3, 40, 60)
    assert resized(torch.zeros(1, 3, 40, 60), None).shape == (1, 3, 40, 60)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"cutoff": 0.0}, r"cutoff must be above 0 and below √2; found 0.0"),
        ({"highpass": "gausian"}, "did you mean 'gaussian'"),
        ({"edge": "gradients"}, "did you mean 'gradient'"),
        ({"fourier_distance": "l3"}, "one of l2, l1"),
        ({"order": 0}, "order must be at least 1"),
        ({"lam_high": -1.0}, "lam_high must be at least 0"),
    ],
)
def test_bad_settings_are_told(fields, words):
    with pytest.raises(ValueError, match=words):
        dp.HipaLossSpec(**fields)


def test_unknown_distance_and_other_shapes_are_told():
    with pytest.raises(UnknownNameError, match="did you mean 'vit_mini'"):
        dp.HipaLoss(dp.HipaLossSpec(spatial="vit_mimi"))
    with pytest.raises(ValueError, match=r"found \[2, 3, 32, 32\] and \[2, 3, 16, 16\]"):
        dp.HipaLoss(PLAIN)(pictures(0), pictures(0, 16))


def test_high_frequencies_come_sooner_with_their_terms():
    """A UNet learns by LoRA to draw in one step what another LoRA draws; what is coarse weighs most in the pictures."""
    torch.manual_seed(0)
    noise, text, kernel = torch.randn(16, 4, 8, 8), torch.randn(16, 5, 16), 0.3 * torch.randn(4, 3, 2, 2)

    def student() -> nn.Module:
        torch.manual_seed(0)
        return dp.add_adapter(unet(use_linear_projection=True), dp.HipaConfig(r=4, lora_alpha=8))

    def drawn(model: nn.Module) -> Tensor:
        clean = clean_from(noise, model(noise, 999, text).sample, 0.068265, 0.997667, "v_prediction")
        coarse = F.interpolate(F.avg_pool2d(clean[:, :3], 4), size=(16, 16), mode="bilinear")
        return (4 * coarse + F.conv_transpose2d(clean, kernel, stride=2) + 1) / 2

    with torch.no_grad():
        teacher = student()
        for name, parameter in teacher.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.5)
        wanted = drawn(teacher)
    left = {}
    for lam_high in (0.0, 10.0):
        model, loss = student(), dp.HipaLoss(dp.HipaLossSpec(spatial="mse", lam_high=lam_high))
        optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
        for _ in range(25):
            optimiser.zero_grad()
            loss(drawn(model), wanted)["loss"].backward()
            optimiser.step()
        with torch.no_grad():
            left[lam_high] = dp.HipaLoss(PLAIN)(drawn(model), wanted)["fourier"]
    with torch.no_grad():
        start = dp.HipaLoss(PLAIN)(drawn(student()), wanted)["fourier"]
    assert left[10.0] < 0.85 * left[0.0] < start
