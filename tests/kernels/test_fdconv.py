"""The operations of FDConv: spectra, groups, kernels per sample, bands."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from peft_kernels.ops.fdconv import (
    band_masks,
    band_modulation,
    bands,
    exported,
    frequency_groups,
    reference,
    sample_kernels,
    spectrum_of,
    weight_of,
)
from peft_kernels.ops.fdconv.spectrum import folded, unfolded

SIZES = [(20, 18, 3), (17, 19, 3), (17, 19, 1), (24, 32, 1), (1, 3, 1)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_unfolding_puts_taps_beside_their_channels() -> None:
    out, channels, u, v = torch.meshgrid(*(torch.arange(n) for n in (4, 5, 3, 3)), indexing="ij")
    matrix = unfolded(1000 * out + 100 * channels + 10 * u + v)
    assert matrix[2 * 3 + 1, 4 * 3 + 2] == 2412
    assert torch.equal(unfolded(folded(matrix, 3, 3)), matrix)


@pytest.mark.parametrize(("out", "channels", "k"), SIZES)
def test_spectrum_gives_the_weight_back(out: int, channels: int, k: int) -> None:
    weight = torch.randn(out, channels, k, k, dtype=torch.float64)
    torch.testing.assert_close(weight_of(spectrum_of(weight), channels, k, k), weight)


def test_what_a_real_weight_does_not_know_of_its_spectrum_changes_nothing() -> None:
    spectrum = spectrum_of(torch.randn(6, 8, 1, 1, dtype=torch.float64))
    other = spectrum.clone()
    other[0, 0, 1] += 5
    other[2, -1] += 3
    other[-2, -1] += torch.tensor([-3.0, 3.0])
    torch.testing.assert_close(weight_of(other, 8, 1, 1), weight_of(spectrum, 8, 1, 1))


@pytest.mark.parametrize(("rows", "columns", "count"), [(60, 54, 4), (17, 19, 7), (96, 96, 64), (5, 1, 5)])
def test_groups_part_the_entries_by_frequency(rows: int, columns: int, count: int) -> None:
    groups = frequency_groups(rows, columns, count)
    width = columns // 2 + 1
    sizes = torch.bincount(groups.flatten().long(), minlength=count)
    assert groups.shape == (rows, width)
    assert int(sizes.max() - sizes.min()) <= 1
    assert groups[0, 0] == 0
    f_h, f_w = torch.fft.fftfreq(rows, dtype=torch.float64), torch.fft.rfftfreq(columns, dtype=torch.float64)
    distance = (f_h.square()[:, None] + f_w.square()).sqrt()
    farthest = [distance[groups == group].max() for group in range(count)]
    nearest = [distance[groups == group].min() for group in range(count)]
    assert all(low <= high + 1e-12 for low, high in zip(farthest, nearest[1:], strict=False))


def test_more_groups_than_entries_are_refused() -> None:
    with pytest.raises(ValueError, match="from 1 to 12 groups; found 13"):
        frequency_groups(4, 4, 13)


CASES = ["plain", "filters", "taps", "columns", "local", "filters columns", "filters taps columns local", "taps local"]


def kernel_inputs(out: int, channels: int, k: int, parts: str, copies: int = 1) -> dict[str, Tensor]:
    tensors = {
        "spectrum": torch.randn(copies, out * k, channels * k // 2 + 1, 2, dtype=torch.float64),
        "gains": torch.rand(2, copies, 3, dtype=torch.float64),
    }
    if "filters" in parts:
        tensors["filters"] = torch.rand(2, out, dtype=torch.float64)
    if "taps" in parts:
        tensors["taps"] = torch.rand(2, k, k, dtype=torch.float64)
    if "columns" in parts:
        tensors["columns"] = torch.rand(2, channels, dtype=torch.float64)
    if "local" in parts:
        tensors["pooled"] = torch.randn(2, channels, dtype=torch.float64)
        tensors["local"] = torch.randn(out * k * k, 3, dtype=torch.float64)
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("parts", CASES)
@pytest.mark.parametrize(("out", "channels", "k"), [(4, 6, 3), (5, 7, 3), (3, 5, 1), (6, 4, 1)])
def test_kernels_agree_with_the_formula(out: int, channels: int, k: int, parts: str, copies: int) -> None:
    tensors = kernel_inputs(out, channels, k, parts, copies)
    groups = frequency_groups(out * k, channels * k, 3)
    values, gradients = [], []
    for function in (reference.sample_kernels, sample_kernels):
        found = function(groups=groups, size=(channels, k, k), multiplier=1.5, **tensors)
        probe = torch.linspace(-1, 2, found.numel(), dtype=found.dtype).view_as(found)
        values.append(found)
        gradients.append(torch.autograd.grad((found * probe).sum(), list(tensors.values())))
    torch.testing.assert_close(values[1], values[0])
    for name, found, wanted in zip(tensors, gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(found, wanted, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(("out", "channels", "k"), [(4, 6, 3), (5, 7, 3), (3, 5, 1), (6, 4, 1)])
def test_exported_kernels_are_the_same(out: int, channels: int, k: int) -> None:
    tensors: dict[str, Any] = kernel_inputs(out, channels, k, "plain", 2)
    groups = frequency_groups(out * k, channels * k, 3)
    expected = sample_kernels(groups=groups, size=(channels, k, k), **tensors)
    torch.testing.assert_close(exported.plain_kernels(groups=groups, size=(channels, k, k), **tensors), expected)


@pytest.mark.parametrize("kind", ["grid64", "exact"])
@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 8), (13, 5), (32, 32)])
def test_exported_bands_are_the_same(height: int, width: int, more: int, kind: str) -> None:
    x = torch.randn(2, 6, height, width, dtype=torch.float64)
    maps = torch.rand(2, 3 + more, 2, height, width, dtype=torch.float64)
    passes = bands.low_passes((2, 4, 8), height, width, kind)
    torch.testing.assert_close(exported.band_modulation(x, maps, *passes), band_modulation(x, maps, (2, 4, 8), kind))


@pytest.mark.parametrize("k", [1, 3])
def test_the_gradient_from_above_stays_as_it_is(k: int) -> None:
    tensors: Any = kernel_inputs(4, 6, k, "filters columns local")
    found = sample_kernels(groups=frequency_groups(4 * k, 6 * k, 3), size=(6, k, k), **tensors)
    above = torch.randn_like(found)
    given = above.clone()
    torch.autograd.grad(found, list(tensors.values()), above)
    assert torch.equal(above, given)


def test_kernel_gradients_by_differences() -> None:
    tensors = kernel_inputs(3, 4, 3, "filters taps columns local")
    groups = frequency_groups(9, 12, 3)

    def kernels(*values: Tensor) -> Tensor:
        return sample_kernels(groups=groups, size=(4, 3, 3), multiplier=2.0, **dict(zip(tensors, values, strict=True)))

    assert torch.autograd.gradcheck(kernels, tuple(tensors.values()))


def test_a_gain_doubles_its_group_alone() -> None:
    weight = torch.randn(6, 8, 3, 3, dtype=torch.float64)
    groups, gains = frequency_groups(18, 24, 5), torch.ones(1, 1, 5, dtype=torch.float64)
    gains[..., 2] = 2
    spectrum = spectrum_of(weight)
    band = weight_of(spectrum * (groups == 2)[..., None], 8, 3, 3)
    torch.testing.assert_close(sample_kernels(spectrum[None], gains, groups, (8, 3, 3))[0], weight + band)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (56, 56), (13, 80), (2, 3)])
@pytest.mark.parametrize("kind", ["grid64", "exact"])
def test_bands_add_up_to_the_map(size: tuple[int, int], kind: str) -> None:
    x = torch.randn(2, 4, *size)
    maps = torch.ones(2, 3, 1, *size)
    torch.testing.assert_close(band_modulation(x, maps, (2, 4, 8), kind), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", ["grid64", "exact"])
@pytest.mark.parametrize("cuts", [(2, 4), (1.1, 3)])
@pytest.mark.parametrize("size", [(5, 6), (14, 16), (7, 4), (1, 3), (3, 1)])
def test_bands_agree_with_the_formula(
    size: tuple[int, int], cuts: tuple[float, ...], kind: str, groups: int, extra: int
) -> None:
    x = torch.randn(2, 4, *size, dtype=torch.float64, requires_grad=True)
    maps = torch.rand(2, 2 + extra, groups, *size, dtype=torch.float64, requires_grad=True)
    masks = band_masks(cuts, *size, kind).double()
    values, gradients = [], []
    for y in (reference.band_modulation(x, maps, masks), band_modulation(x, maps, cuts, kind)):
        probe = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
        values.append(y)
        gradients.append(torch.autograd.grad((y * probe).sum(), [x, maps]))
    torch.testing.assert_close(values[1], values[0])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_band_gradients_by_differences() -> None:
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    maps = torch.rand(1, 3, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *inputs: band_modulation(*inputs, cuts=(2, 4)), (x, maps))


@pytest.mark.parametrize(("cut", "last"), [(2, 15), (4, 8), (8, 4)])
def test_the_official_mask_ends_where_float32_does(cut: int, last: int) -> None:
    [mask] = band_masks((cut,), 64, 64)
    assert mask[0].nonzero().max() == last


def test_the_official_mask_is_resampled_in_float32() -> None:
    step = torch.tensor(64 / 82, dtype=torch.float32)
    nearest = (torch.arange(82) * step).floor().long()
    assert not torch.equal(nearest, torch.arange(82) * 64 // 82)  # so that the test below means something
    rows = torch.fft.fftfreq(64).abs()[nearest] < torch.tensor(0.125 + 1e-8)
    assert torch.equal(band_masks((4,), 82, 64)[0][:, 1] > 0, rows)
