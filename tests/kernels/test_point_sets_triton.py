"""The Triton kernels choose the points that the references choose: by Triton's interpreter, and on a GPU."""

import pytest
import torch

from tests.kernels.interpreted import check

CHECK = """
import torch
from peft_kernels.ops.point_sets import farthest_points_reference, nearest_neighbours_reference
from peft_kernels.ops.point_sets.points_triton import farthest, nearest

torch.manual_seed(0)
for device in {devices}:
    for dtype in (torch.float32, torch.float64):
        for batch, points, count in ((1, 1, 1), (2, 7, 5), (2, 100, 12)):
            x = torch.rand(batch, points, 3, dtype=dtype, device=device) * 2 - 1
            for threshold in (0.0, 1e-3, 0.5):
                expected = farthest_points_reference(x, count, threshold)
                assert torch.equal(farthest(x, count, threshold), expected)
            centers = torch.rand(batch, 4, 3, dtype=dtype, device=device) * 2 - 1
            assert torch.equal(nearest(x, centers, count), nearest_neighbours_reference(x, centers, count))
    same = torch.zeros(1, 6, 3, device=device)
    assert farthest(same, 3, 1e-3).tolist() == [[0, 0, 0]]
    assert nearest(same, same[:, :1], 6).tolist() == [[list(range(6))]]
"""


def test_points_are_right_by_the_interpreter() -> None:
    pytest.importorskip("triton")
    check(CHECK, "cpu", TRITON_INTERPRET="1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_points_are_right_on_a_gpu() -> None:
    check(CHECK, "cuda")
