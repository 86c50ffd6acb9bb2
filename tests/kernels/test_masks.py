"""Random masks keep the share they promise, independently from entry to entry."""

import pytest
import torch

from peft_kernels.ops import keep_mask


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999])
def test_the_share_dropped_is_p_and_the_factor_makes_up_for_it(p):
    mask, gain = keep_mask((1000, 1001), p)
    entries = mask.numel()
    assert abs(entries - mask.sum() - p * entries) <= 5 * (entries * p * (1 - p)) ** 0.5
    assert gain == pytest.approx(1 / (1 - p), rel=2e-2 if p == 0.999 else 1e-4)


def test_entries_of_one_random_word_are_independent():
    mask, _ = keep_mask((250_000, 4), 0.3)
    correlation = torch.corrcoef(mask.double().T) - torch.eye(4, dtype=torch.float64)
    assert correlation.abs().max() < 0.01


def test_a_seed_gives_the_same_mask_again():
    masks = [(torch.manual_seed(3), keep_mask((5, 7), 0.5)[0])[1] for _ in range(2)]
    assert torch.equal(*masks)


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (5,), (2, 3, 7)])
def test_any_shape_is_served(shape):
    assert keep_mask(shape, 0.5)[0].shape == shape


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_a_share_out_of_range_is_refused(p):
    with pytest.raises(ValueError, match=r"^p must lie in \[0, 1\)"):
        keep_mask((3,), p)
