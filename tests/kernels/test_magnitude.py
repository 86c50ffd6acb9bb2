"""Selection by magnitude: strict, in the tensor's own dtype, chunk by chunk, and thresholds for a wanted number."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from peft_kernels import magnitude
from peft_kernels.magnitude import below, count_below, smallest, threshold_for


def weights(shape: tuple[int, ...] = (37, 53), dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("chunk", [64, 2**20])
def test_places_are_those_of_the_plain_comparison(
    dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(magnitude, "CHUNK", chunk)
    weight = weights(dtype=dtype)
    expected = (weight.abs() < 0.3).flatten().nonzero().squeeze(1)
    found = below(weight, 0.3)
    assert found.dtype == torch.int32
    assert torch.equal(found.long(), expected)
    assert count_below(weight, 0.3) == len(expected) > 0


def test_the_threshold_itself_nan_and_infinity_are_not_below() -> None:
    weight = torch.tensor([0.5, -0.5, 0.0, -0.0, float("nan"), float("inf"), -float("inf"), 0.49])
    assert below(weight, 0.5).tolist() == [2, 3, 7]


def test_places_of_a_permuted_tensor_are_in_its_own_order() -> None:
    weight = weights((6, 3, 5, 5)).to(memory_format=torch.channels_last)
    assert torch.equal(below(weight, 0.2), below(weight.contiguous(), 0.2))


@pytest.mark.parametrize("dtypes", [(torch.float32,), (torch.float64, torch.float32), (torch.bfloat16, torch.float32)])
@pytest.mark.parametrize("count", [0, 1, 100, 1960])
@pytest.mark.parametrize("sample", [2**19, 500])
def test_threshold_has_the_wanted_number_below(
    dtypes: tuple[torch.dtype, ...], count: int, sample: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(magnitude, "SAMPLE", sample)
    tensors = [weights().double().add(i).to(dtype) for i, dtype in enumerate(dtypes)]
    threshold = threshold_for(tensors, count)
    every = torch.cat([tensor.double().abs().flatten() for tensor in tensors]).sort().values
    assert threshold == every[count].item()
    assert sum(count_below(tensor, threshold) for tensor in tensors) == int((every < threshold).sum())


@pytest.mark.parametrize(
    "dtypes", [(torch.float32, torch.float32), (torch.bfloat16,) * 2, (torch.bfloat16, torch.float32)]
)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.08, 0.6, 0.999])
@pytest.mark.parametrize("sample", [2**19, 500])
def test_the_smallest_are_those_below_the_threshold(
    dtypes: tuple[torch.dtype, ...], share: float, sample: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(magnitude, "SAMPLE", sample)
    tensors = [weights().add(i).to(dtype) for i, dtype in enumerate(dtypes)]
    count = round(share * sum(tensor.numel() for tensor in tensors))
    threshold, places, values = smallest(tensors, count)
    assert threshold == threshold_for(tensors, count)
    for tensor, at, found in zip(tensors, places, values, strict=True):
        assert at.dtype == torch.int32
        assert torch.equal(at, below(tensor, threshold))
        assert torch.equal(found, tensor.flatten()[at])


def test_equal_magnitudes_are_left_out_together() -> None:
    weight = torch.tensor([0.0, 0.0, 1.0, -1.0, 1.0, 2.0])
    assert count_below(weight, threshold_for([weight], 4)) == 2


@pytest.mark.parametrize("equal", [0.0, 0.25])
def test_threshold_among_many_equal_magnitudes(equal: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """There a sample's magnitudes do not tell where it lies."""
    monkeypatch.setattr(magnitude, "SAMPLE", 100)
    weight = torch.where(torch.arange(37 * 53).view(37, 53) % 10 < 8, torch.tensor(equal), weights())
    every = weight.abs().flatten().sort().values
    for count in (1, 600, 1500, 1900):
        assert threshold_for([weight], count) == every[count].item()


def test_most_large_tensors_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(magnitude, "SAMPLE", 2**14)
    monkeypatch.setattr(magnitude, "_by_bits", None)
    weight = weights((1024, 512))
    every = weight.abs().flatten().sort().values
    for share in (0.001, 0.05, 0.5, 0.99):
        assert threshold_for([weight], round(share * len(every))) == every[round(share * len(every))].item()


@pytest.mark.parametrize("sample", [2**19, 4])
def test_impossible_counts_raise(sample: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(magnitude, "SAMPLE", sample)
    with pytest.raises(ValueError, match="less than the 6 entries there are; found 6"):
        threshold_for([torch.zeros(6)], 6)
    with pytest.raises(ValueError, match="are finite numbers"):
        threshold_for([torch.tensor([1.0, float("nan"), float("inf")])], 1)
