"""The Triton kernel gives exact differences' distances: by Triton's interpreter, and on a GPU where there is one."""

import pytest
import torch

from tests.kernels.interpreted import check

CHECK = """
import torch
from peft_kernels.ops.kernel_delta.distance_triton import distances_

torch.manual_seed(0)
for device in {devices}:
    for dtype in (torch.float32, torch.float64):
        for rows, columns, d, parts in ((1, 1, 1, 1), (33, 65, 4, 2), (7, 130, 3, 1)):
            a = torch.randn(parts, columns, d, dtype=dtype, device=device)
            b = torch.randn(parts, rows + 2, d, dtype=dtype, device=device)[:, 1:-1]
            b[0, 0] = a[0, -1]
            out = torch.empty(parts, rows, columns, dtype=dtype, device=device)
            distances_(a, b, out)
            expected = (b[:, :, None] - a[:, None]).square().sum(-1).sqrt()
            assert out[0, 0, -1] == 0
            torch.testing.assert_close(out, expected)
"""


def test_distances_are_right_by_the_interpreter():
    pytest.importorskip("triton")
    check(CHECK, "cpu", TRITON_INTERPRET="1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_distances_are_right_on_a_gpu():
    check(CHECK, "cuda")
