"""The core of deformable attention against ``grid_sample``, forward and backward, at PIIP's shapes.

Queries read four points for each of 16 heads of one map, float32, one picture, one thread. Process CPU time, least of
several, contestants taking turns; peak bytes of forward and backward beyond the arguments.

    python kernels/benchmarks/deformable.py [--repeats 3] [--compiled]
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from measure import cpu_seconds, peak_bytes, write_results
from torch import Tensor

from peft_kernels.ops.deformable import (
    deformable_attention,
    deformable_attention_grid,
    deformable_attention_reference,
)

PEER = "grid_sample"
CONTESTANTS: dict[str, Callable[..., Tensor]] = {PEER: deformable_attention_grid, "bags": deformable_attention}
SHAPES = ((98, 56, 384), (56, 98, 768), (24, 12, 384), (8, 12, 1024))
HEADS, POINTS = 16, 4


def arguments(queries: int, cells: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values (half as wide as the tokens), places around each query's own, weights, and the output's gradient."""
    torch.manual_seed(0)
    value = torch.randn(1, cells**2, HEADS, width // 2 // HEADS)
    side = torch.arange(0.5, queries) / queries
    centres = torch.cartesian_prod(side, side).flip(-1).view(1, -1, 1, 1, 1, 2)
    places = centres + 2 / cells * torch.randn(1, queries**2, HEADS, 1, POINTS, 2)
    weights = torch.randn(1, queries**2, HEADS, 1, POINTS).softmax(-1)
    return value, places, weights, torch.randn(1, queries**2, width // 2)


def measured(queries: int, cells: int, width: int, repeats: int, compiled: bool) -> dict[str, dict[str, Any]]:
    """Times and bytes of every contestant."""
    *given, gradient = arguments(queries, cells, width)
    leaves = [tensor.requires_grad_() for tensor in given]
    ways = dict(CONTESTANTS)
    if compiled:
        ways["compiled"] = torch.compile(deformable_attention_reference)

    def forward(way: Callable[..., Tensor]) -> Tensor:
        with torch.no_grad():
            return way(leaves[0], [(cells, cells)], leaves[1], leaves[2])

    def both(way: Callable[..., Tensor]) -> object:
        return torch.autograd.grad(way(leaves[0], [(cells, cells)], leaves[1], leaves[2]), leaves, gradient)

    steps = {n: [lambda way=way: forward(way), lambda way=way: both(way)] for n, way in ways.items()}
    seconds = cpu_seconds(steps, repeats)
    return {
        name: {
            "forward_ms": round(1000 * seconds[name][0], 1),
            "forward_over_grid": round(seconds[name][0] / seconds[PEER][0], 3),
            "both_ms": round(1000 * seconds[name][1], 1),
            "both_over_grid": round(seconds[name][1] / seconds[PEER][1], 3),
            "peak_over_output": round(peak_bytes(steps[name][1]) / (gradient.numel() * 4), 2),
        }
        for name in ways
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compiled", action="store_true", help="the formula under torch.compile too (first shape)")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    heads = ("forward ms", "÷ grid", "both ms", "÷ grid", "peak ÷ output")
    print(f"{'queries, cells, width':<34}" + "".join(f"{head:>14}" for head in heads))
    for index, (queries, cells, width) in enumerate(SHAPES):
        found = measured(queries, cells, width, settings.repeats, settings.compiled and not index)
        for name, row in found.items():
            label = f"{queries**2}, {cells**2}, {width} {name}"
            rows[label] = row
            print(f"{label:<34}" + "".join(f"{value:>14}" for value in row.values()))
    print(write_results("deformable", vars(settings), rows))


if __name__ == "__main__":
    main()
