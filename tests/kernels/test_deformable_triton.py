"""The Triton kernels give the formula's values and gradients: by Triton's interpreter, and on a GPU where one is."""

import pytest
import torch

from tests.kernels.interpreted import check

CHECK = """
import torch
from peft_kernels.ops.deformable import deformable_attention_reference
from peft_kernels.ops.deformable.sampled_triton import sampled, sampled_backward

torch.manual_seed(0)
CASES = ((2, 17, 3, 2, 5, [(3, 4), (1, 1)]), (1, 3, 1, 1, 1, [(1, 9)]), (2, 0, 1, 2, 3, [(2, 2)]))
for device in {devices}:
    for dtype in (torch.float32, torch.float64):
        for batch, queries, heads, points, width, shapes in CASES:
            options = dict(dtype=dtype, device=device)
            value = torch.randn(batch, sum(h * w for h, w in shapes), heads, width, **options).requires_grad_()
            places = torch.rand(batch, queries, heads, len(shapes), points, 2, **options).mul(1.6).sub(0.3)
            weights = torch.randn(places.shape[:-1], **options).requires_grad_()
            given = value, places.requires_grad_(), weights
            expected = deformable_attention_reference(value, shapes, places, weights)
            gy = torch.randn_like(expected)
            gradients = torch.autograd.grad(expected, given, gy)
            with torch.no_grad():
                sides = [side for shape in shapes for side in shape]
                torch.testing.assert_close(sampled(value, sides, places, weights, dtype), expected)
                for of_value, of_reads in ((True, True), (True, False), (False, True)):
                    found = sampled_backward(gy, value, sides, places, weights, of_value, of_reads)
                    for wanted, each, truth in zip((of_value, of_reads, of_reads), found, gradients):
                        torch.testing.assert_close(each, truth) if wanted else None
    places = torch.zeros(1, 2, 1, 1, 1, 2, device=device)
    places[0, :, 0, 0, 0, 0] = torch.tensor([torch.nan, torch.inf])
    ones = torch.ones(1, 9, 1, 2, device=device)
    y = sampled(ones, [3, 3], places, torch.ones(1, 2, 1, 1, 1, device=device), torch.float32)
    assert y[0, 0].isnan().all() and (y[0, 1] == 0).all()
"""

ON_GPU = """
import torch
from peft_kernels.ops import deformable_attention
from peft_kernels.ops.deformable import deformable_attention_reference

torch.manual_seed(0)
for dtype in (torch.float32, torch.bfloat16):
    value = torch.randn(2, 20, 2, 6, device="cuda", dtype=dtype).requires_grad_()
    places = torch.rand(2, 50, 2, 1, 4, 2, device="cuda").requires_grad_()
    weights = torch.randn(2, 50, 2, 1, 4, device="cuda").requires_grad_()
    given = value, places, weights
    y, expected = (f(value, [(4, 5)], places, weights) for f in (deformable_attention, deformable_attention_reference))
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected)
    for found, truth in zip(*(torch.autograd.grad(each.float().square().sum(), given) for each in (y, expected))):
        torch.testing.assert_close(found, truth, rtol=1e-2, atol=1e-2)
"""


def test_values_and_gradients_are_right_by_the_interpreter():
    pytest.importorskip("triton")
    check(CHECK, "cpu", TRITON_INTERPRET="1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("code", [CHECK, ON_GPU], ids=["kernels", "operator"])
def test_values_and_gradients_are_right_on_a_gpu(code):
    check(code, "cuda")
