"""Spectra, edges and the perceptual statistic: their formulas in value and gradient, and what they are blind to."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from peft_kernels.ops import (
    edge_distance,
    highpass,
    highpass_mask,
    sobel,
    spectral_distance,
    structure_texture_distance,
)
from peft_kernels.ops.spectra import SHAPES, spectral_distance_reference
from tests.kernels.delta_cases import assert_same
from tests.kernels.test_kernel_delta_memory import kept_shapes

SIZES = [(8, 8), (9, 12), (7, 5), (6, 1), (1, 4), (2, 2)]


def leaf(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def textured(size: int = 32) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def blurred(pictures: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


@pytest.mark.parametrize("distance", ["l2", "l1"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_half_a_spectrum_gives_what_the_whole_gives(size, shape, distance):
    found, wanted, mask = leaf(2, 3, *size), leaf(2, 3, *size), highpass_mask(shape, size[0], size[1], 0.3, order=3)
    expected = spectral_distance_reference(found, wanted, mask, distance)
    assert_same(spectral_distance(found, wanted, mask, distance), expected, [found, wanted], (1e-12, 1e-11))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_mean_square_of_a_spectrum_is_that_of_the_high_pass_pictures(size):
    found, wanted, mask = leaf(2, 3, *size), leaf(2, 3, *size), highpass_mask("gaussian", size[0], size[1], 0.25)
    expected = (highpass(found, mask) - highpass(wanted, mask)).square().mean()
    torch.testing.assert_close(spectral_distance(found, wanted, mask), expected, rtol=1e-12, atol=0)
    brighter = found + torch.tensor([0.3, -2.0, 5.0], dtype=torch.float64).view(3, 1, 1)
    torch.testing.assert_close(spectral_distance(brighter, wanted, mask), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("distance", ["l2", "l1"])
def test_gradients_are_finite_differences(distance):
    wanted, mask = torch.randn(1, 3, 4, 5, dtype=torch.float64), highpass_mask("butterworth", 4, 5, 0.5)
    form = {"l2": "gradient", "l1": "magnitude"}[distance]
    assert torch.autograd.gradcheck(lambda x: spectral_distance(x, wanted, mask, distance), leaf(1, 3, 4, 5))
    assert torch.autograd.gradcheck(lambda x: edge_distance(x, wanted, form), leaf(1, 3, 4, 5))
    weights = [torch.rand(3, dtype=torch.float64)]
    assert torch.autograd.gradcheck(
        lambda x: structure_texture_distance([x], [wanted], weights, weights), leaf(1, 3, 4, 5)
    )


@pytest.mark.parametrize("way", ["as it is", "compiled"])
def test_one_half_spectrum_is_kept(way):
    mask = highpass_mask("gaussian", 6, 8, 0.25)
    wanted = torch.randn(2, 3, 6, 8)

    def distance(found: Tensor) -> Tensor:
        return spectral_distance(found, wanted, mask)

    run = torch.compile(distance, backend="aot_eager", fullgraph=True) if way == "compiled" else distance
    found = leaf(2, 3, 6, 8, dtype=torch.float32)
    loss, shapes = kept_shapes(lambda: run(found))
    assert sorted(shapes) == [(2, 3, 6, 5), (6, 5)]
    loss.backward()
    assert found.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    found, wanted, mask = textured().to(dtype), blurred(textured()).to(dtype), highpass_mask("ideal", 32, 32, 0.5)
    exact = found.float(), wanted.float()
    weights = [torch.ones(3)]
    with torch.autocast("cpu", dtype=dtype):
        got = (
            spectral_distance(found, wanted, mask),
            edge_distance(found, wanted),
            structure_texture_distance([found], [wanted], weights, weights),
        )
    expected = (
        spectral_distance(*exact, mask),
        edge_distance(*exact),
        structure_texture_distance([exact[0]], [exact[1]], weights, weights),
    )
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


def test_blur_is_seen_where_brightness_is_not():
    sharp = textured()
    mask = highpass_mask("gaussian", 32, 32, 0.25)
    assert spectral_distance(blurred(sharp), sharp, mask) > 1000 * spectral_distance(sharp + 0.3, sharp, mask)
    assert edge_distance(blurred(sharp), sharp) > 1000 * edge_distance(sharp + 0.3, sharp)


def test_slopes_of_a_ramp_are_those_of_its_luma():
    ramp = torch.arange(8.0, dtype=torch.float64).expand(1, 3, 6, 8)
    across, down = sobel(ramp)
    torch.testing.assert_close(across[..., 1:-1], torch.ones_like(across[..., 1:-1]))
    torch.testing.assert_close(across[..., 0], torch.full_like(across[..., 0], 0.5))  # the border is repeated
    assert down.abs().max() < 1e-12
    green = ramp.clone()
    green[:, ::2] = 0
    torch.testing.assert_close(sobel(green)[0][..., 1:-1], torch.full_like(across[..., 1:-1], 0.587))


def test_same_features_are_at_no_distance_and_textures_count_less_than_structure():
    features = [textured(16), textured(8)]
    weights = [torch.ones(3, dtype=torch.float64)] * 2
    assert structure_texture_distance(features, features, weights, weights).abs().max() < 1e-12
    moved = [stage.roll(3, -1) for stage in features]
    nothing = [torch.zeros(3, dtype=torch.float64)] * 2
    texture_alone = structure_texture_distance(moved, features, weights, nothing)
    assert texture_alone.abs().max() < 1e-12 < structure_texture_distance(moved, features, nothing, weights).min()


def test_flat_pictures_have_gradients_without_nan():
    flat = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64, requires_grad=True)
    weights = [torch.ones(3, dtype=torch.float64)]
    total = edge_distance(flat, textured(4)[:1], "magnitude") + spectral_distance(
        flat, flat.detach(), highpass_mask("ideal", 4, 4, 0.5), "l1"
    )
    (total + structure_texture_distance([flat], [flat.detach()], weights, weights).sum()).backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: highpass_mask("round", 4, 4, 0.2), "ideal, gaussian, butterworth; found 'round'"),
        (lambda: highpass_mask("ideal", 4, 4, 0.0), "above 0 and below √2"),
        (lambda: highpass_mask("ideal", 4, 4, 1.5), "found 1.5"),
        (lambda: highpass_mask("butterworth", 4, 4, 0.2, order=0), "order must be at least 1"),
        (
            lambda: spectral_distance(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5), torch.zeros(4, 4)),
            r"found \[1, 3, 4, 4\], \[1, 3, 4, 5\]",
        ),
        (
            lambda: spectral_distance(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), torch.zeros(4, 4), "l3"),
            "one of l2, l1; found 'l3'",
        ),
        (lambda: edge_distance(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), "round"), "gradient, magnitude"),
        (lambda: edge_distance(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5)), "pictures of one shape"),
        (lambda: sobel(torch.zeros(1, 4, 4, 4)), r"found \[1, 4, 4, 4\]"),
        (
            lambda: structure_texture_distance([torch.zeros(1, 3, 4, 4)], [torch.zeros(1, 2, 4, 4)], [], []),
            "features of the same stages",
        ),
    ],
)
def test_bad_input_is_told(call, words):
    with pytest.raises(ValueError, match=words):
        call()
