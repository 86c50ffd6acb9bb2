"""Scoring every weight of ViT-B/16 against the plain forward and backward passes that it needs.

`sensitivity` of `vit_base_patch16_224` on batches of random images in float32, one thread: process CPU time a batch and
peak bytes above the standing weights. "forward, backward" makes all gradients and keeps them until they are dropped;
"squares by hand" is the plain way, which holds all gradients and adds their squares to the scores after each batch.

    python kernels/benchmarks/sensitivity.py [--repeats 3] [--batch 4] [--batches 4]
"""

import argparse
from collections.abc import Callable

import timm
import torch
from measure import Step, cpu_seconds, peak_bytes, write_results
from torch import Tensor, nn
from torch.nn import functional as F

from peft_kernels.sensitivity import sensitivity

FLOOR = "forward, backward"
Batches = list[tuple[Tensor, Tensor]]


def forward_backward(model: nn.Module, batches: Batches) -> None:
    """What any gradient costs."""
    for images, labels in batches:
        F.cross_entropy(model(images), labels).backward()
        model.zero_grad(set_to_none=True)


def squares_by_hand(model: nn.Module, batches: Batches) -> None:
    """All gradients, then all squares."""
    scores = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for images, labels in batches:
        F.cross_entropy(model(images), labels).backward()
        for score, parameter in zip(scores, model.parameters(), strict=True):
            assert parameter.grad is not None
            score += parameter.grad**2
        model.zero_grad(set_to_none=True)


CONTESTANTS: dict[str, Callable[[nn.Module, Batches], object]] = {
    FLOOR: forward_backward,
    "squares by hand": squares_by_hand,
    "sensitivity": sensitivity,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--batches", type=int, default=4)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = timm.create_model("vit_base_patch16_224", num_classes=100).train()
    shape = (settings.batch, 3, 224, 224)
    batches = [(torch.randn(shape), torch.randint(100, (settings.batch,))) for _ in range(settings.batches)]
    weights = sum(parameter.nbytes for parameter in model.parameters())

    def step(score: Callable[[nn.Module, Batches], object]) -> Step:
        return lambda: score(model, batches)

    steps = {name: step(score) for name, score in CONTESTANTS.items()}
    seconds = {name: row[0] for name, row in cpu_seconds({n: [s] for n, s in steps.items()}, settings.repeats).items()}
    peaks = {name: peak_bytes(step) for name, step in steps.items()}
    rows = {
        name: {
            "ms_a_batch": round(1e3 * seconds[name] / settings.batches, 1),
            "time_over_floor": round(seconds[name] / seconds[FLOOR], 3),
            "peak_mib": round(peaks[name] / 2**20, 1),
            "copies_of_the_weights": round(peaks[name] / weights, 2),
        }
        for name in steps
    }
    print(f"{'':<20}{'ms a batch':>11}{'÷ floor':>9}{'peak MiB':>10}{'÷ weights':>11}")
    for name, row in rows.items():
        print(f"{name:<20}" + "".join(f"{v:>{w}}" for v, w in zip(row.values(), (11, 9, 10, 11), strict=True)))
    print(write_results("sensitivity", vars(settings), rows))


if __name__ == "__main__":
    main()
