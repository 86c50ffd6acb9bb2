"""Training single entries of frozen linear layers, against training all of them and against training none.

A stack of three residual pairs 768 -> 3072 -> 768 on 512 tokens in float32, forward, backward and AdamW, one thread:
process CPU time and peak bytes above the standing weights, with the optimiser's tensors. "full" trains every weight,
"floor" none (forward and the input's gradient); the shares in between train that part of the entries of each layer.

    python kernels/benchmarks/sparse_grad.py [--repeats 6] [--tokens 512]
"""

import argparse
from collections.abc import Callable
from itertools import pairwise

import torch
from measure import Step, cpu_seconds, peak_bytes, write_results
from torch import Tensor, nn
from torch.nn import functional as F

from peft_kernels.ops import sparse_linear

WIDTHS = (768, 3072, 768)
PAIRS = 3
SHARES = (0.001, 0.003, 0.006, 0.01, 0.02, 0.058, 0.1, 0.15, 0.2)


class SparseLinear(nn.Module):
    """A frozen linear layer some of whose entries are trained."""

    index: Tensor

    def __init__(self, inputs: int, outputs: int, share: float):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * inputs**-0.5, requires_grad=False)
        places = torch.randperm(outputs * inputs)[: round(share * outputs * inputs)].sort().values
        self.register_buffer("index", places.int())
        self.values = nn.Parameter(torch.zeros(len(places)))

    def forward(self, x: Tensor) -> Tensor:
        return sparse_linear(x, self.weight, self.index, self.values)


class Stack(nn.Module):
    """Residual pairs of linear layers."""

    def __init__(self, make: Callable[[int, int], nn.Module]):
        super().__init__()
        pairs = ([make(*sizes) for sizes in pairwise(WIDTHS)] for _ in range(PAIRS))
        self.pairs = nn.ModuleList(nn.Sequential(up, nn.ReLU(), down) for up, down in pairs)

    def forward(self, x: Tensor) -> Tensor:
        for pair in self.pairs:
            x = x + pair(x)
        return x


def linear(trained: bool) -> Callable[[int, int], nn.Module]:
    """Makes linear layers without bias."""
    return lambda inputs, outputs: nn.Linear(inputs, outputs, bias=False).requires_grad_(trained)


def sparse(share: float) -> Callable[[int, int], nn.Module]:
    """Makes layers with this share of trained entries."""
    return lambda inputs, outputs: SparseLinear(inputs, outputs, share)


def step_of(make: Callable[[int, int], nn.Module], tokens: int) -> tuple[Step, Callable[[], int]]:
    """One training step of a fresh stack, and the bytes of its optimiser's tensors."""
    torch.manual_seed(0)
    stack, x = Stack(make), torch.randn(1, tokens, WIDTHS[0], requires_grad=True)
    target = torch.randn(1, tokens, WIDTHS[0])
    trained = [p for p in stack.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4, foreach=False) if trained else None

    def step() -> None:
        x.grad = None
        F.mse_loss(stack(x), target).backward()
        if optimiser is not None:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def held() -> int:
        states = optimiser.state.values() if optimiser is not None else ()
        return sum(t.nbytes for state in states for t in state.values() if isinstance(t, Tensor))

    return step, held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=512)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    makers = {"floor": linear(False), "full": linear(True), **{f"{share:.1%}": sparse(share) for share in SHARES}}
    steps = {name: step_of(make, settings.tokens) for name, make in makers.items()}
    seconds = cpu_seconds({name: [step] for name, (step, _) in steps.items()}, settings.repeats)
    peaks = {name: peak_bytes(step) + held() for name, (step, held) in steps.items()}
    rows = {}
    print(f"{'entries':<10}{'ms':>8}{'÷ full':>9}{'÷ floor':>9}{'peak MiB':>10}{'÷ full':>9}")
    for name in steps:
        rows[name] = {
            "ms": round(1e3 * seconds[name][0], 1),
            "time_over_full": round(seconds[name][0] / seconds["full"][0], 3),
            "time_over_floor": round(seconds[name][0] / seconds["floor"][0], 3),
            "peak_mib": round(peaks[name] / 2**20, 1),
            "peak_over_full": round(peaks[name] / peaks["full"], 3),
        }
        print(f"{name:<10}" + "".join(f"{v:>{w}}" for v, w in zip(rows[name].values(), (8, 9, 9, 10, 9), strict=True)))
    print(write_results("sparse_grad", {**vars(settings), "widths": WIDTHS, "pairs": PAIRS}, rows))


if __name__ == "__main__":
    main()
