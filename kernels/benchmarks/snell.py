"""The fused layers of SNELL and SNELLA against a frozen linear layer (the floor), LoRA (the peer) and plain formulas.

The linear layers of a ViT-B block (q, k, v fused 768 -> 2304 with three deltas, 768 -> 768, 768 -> 3072, 3072 -> 768)
on 8 x 197 tokens in float32, forward and backward, one thread: process CPU time and peak bytes above the standing
tensors (x, the gradient of y, parameters), summed over layers.

    python kernels/benchmarks/snell.py [--repeats 8] [--tokens 197]
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from measure import Step, cpu_seconds, peak_bytes, write_results
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from peft_kernels.ops import DeltaSlice, DeltaSpec, gated_linear, keep_mask

LAYERS = ((768, 2304, 3), (768, 768, 1), (768, 3072, 1), (3072, 768, 1))  # in, out, deltas on equal blocks of rows
BATCH, RANK, PARTS = 8, 8, 2
DROP = 0.1  # of the branch's input, and of its output by sample
DRAWS = 5  # steps of a layer with drop-path, each with samples of its own dropped, that its figures are the means of


class Delta(nn.Module):
    """A frozen linear layer with gated deltas on equal blocks of its rows, at SNELL's initial values."""

    def __init__(self, inputs: int, outputs: int, blocks: int, sparsity: float):
        super().__init__()
        self.base = frozen(inputs, outputs)
        rows, rank = outputs // blocks, RANK // PARTS
        bounds = (inputs * rank) ** -0.5, (rows * rank) ** -0.5
        self.A = nn.ParameterList(torch.empty(PARTS, inputs, rank).uniform_(-1, 1) * bounds[0] for _ in range(blocks))
        self.B = nn.ParameterList(torch.empty(PARTS, rows, rank).uniform_(-1, 1) * bounds[1] for _ in range(blocks))
        self.specs = [DeltaSpec(sparsity=sparsity, start=rows * i) for i in range(blocks)]

    def slices(self) -> list[DeltaSlice]:
        return [DeltaSlice(*part) for part in zip(self.A, self.B, self.specs, strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        return gated_linear(x, self.base.weight, self.base.bias, self.slices())


class MixedDelta(Delta):
    """The same with SNELLA's kernel, at its initial values."""

    def __init__(self, inputs: int, outputs: int, blocks: int, sparsity: float):
        super().__init__(inputs, outputs, blocks, sparsity)
        self.specs = [replace(spec, kernel="mix") for spec in self.specs]
        self.scalars = nn.ParameterList(torch.tensor([1.0, 1.0, 0.0]) for _ in range(blocks))

    def slices(self) -> list[DeltaSlice]:
        return [part._replace(scalars=scalars) for part, scalars in zip(super().slices(), self.scalars, strict=True)]


class DroppedDelta(Delta):
    """The same with dropout on the branch's input and drop-path on its output.

    Of all samples in all draws, exactly a share of `DROP` is dropped for each delta: as many as are expected.
    """

    draw = 0

    def __init__(self, inputs: int, outputs: int, blocks: int, sparsity: float):
        super().__init__(inputs, outputs, blocks, sparsity)
        slots = BATCH * DRAWS
        ranks = torch.stack([torch.randperm(slots) for _ in range(blocks)])
        self.kept = (ranks >= round(DROP * slots)).view(blocks, DRAWS, BATCH).unbind(1)

    def forward(self, x: Tensor) -> Tensor:
        drop, gain = keep_mask(x.shape, DROP)
        keep, gain = self.kept[self.draw], gain / (1 - DROP)
        return gated_linear(x, self.base.weight, self.base.bias, self.slices(), drop=drop, keep=keep, gain=gain)


class PlainDelta(Delta):
    """The formulas as they stand, each tensor kept by autograd: two distance matrices a delta and a sort."""

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + torch.cat([F.linear(x, self.delta(*part)) for part in self.slices()], -1)

    def delta(self, A: Tensor, B: Tensor, spec: DeltaSpec, _: object) -> Tensor:
        """S of one slice."""
        delta = torch.stack([c * torch.cdist(b, a) for c, b, a in zip(spec.coeff, B, A, strict=True)]).sum(0)
        magnitude = delta.detach().abs()
        ordered = magnitude.flatten().sort().values
        index = spec.threshold_index(delta.numel())
        return delta if index is None else delta * magnitude * (magnitude > ordered[index])


def frozen(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that is not trained."""
    return nn.Linear(inputs, outputs).requires_grad_(False)


def lora(inputs: int, outputs: int) -> nn.Module:
    """PEFT's LoRA of the same rank on a frozen linear layer."""
    return get_peft_model(nn.Sequential(frozen(inputs, outputs)), LoraConfig(r=RANK, target_modules=["0"]))  # pyright: ignore[reportArgumentType]


CONTESTANTS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "frozen linear": lambda i, o, _: frozen(i, o),
    "LoRA r=8 (PEFT)": lambda i, o, _: lora(i, o),
    "trainable linear": lambda i, o, _: nn.Linear(i, o),
    "SNELL r=8 s=0": lambda i, o, n: Delta(i, o, n, 0.0),
    "SNELL r=8 s=0.5": lambda i, o, n: Delta(i, o, n, 0.5),
    "SNELLA r=8 s=0.5": lambda i, o, n: MixedDelta(i, o, n, 0.5),
    "SNELL r=8 s=0.5, dropout, drop-path": lambda i, o, n: DroppedDelta(i, o, n, 0.5),
    "SNELL r=8 s=0.5, as the formulas stand": lambda i, o, n: PlainDelta(i, o, n, 0.5),
}


def training_steps(layer: nn.Module, inputs: int, outputs: int, tokens: int) -> list[Step]:
    """Forward and backward of one layer, for each of its draws; each lets go of the gradients of the one before."""
    x = torch.randn(BATCH, tokens, inputs, requires_grad=True)
    gy = torch.randn(BATCH, tokens, outputs)

    def step(draw: int) -> None:
        x.grad = None
        layer.zero_grad(set_to_none=True)
        if isinstance(layer, DroppedDelta):
            layer.draw = draw
        layer(x).backward(gy)

    return [partial(step, draw) for draw in range(DRAWS if isinstance(layer, DroppedDelta) else 1)]


def means(values: Sequence[float]) -> list[float]:
    """Mean over the draws of each layer, in the order of `LAYERS`."""
    draws = len(values) // len(LAYERS)
    return [sum(values[i : i + draws]) / draws for i in range(0, len(values), draws)]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=8)
    options.add_argument("--tokens", type=int, default=197)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    steps = {
        name: [step for i, o, n in LAYERS for step in training_steps(make(i, o, n), i, o, chosen.tokens)]
        for name, make in CONTESTANTS.items()
    }
    seconds = cpu_seconds(steps, chosen.repeats)
    rows = {}
    for name, row in steps.items():
        by_layer, peaks = means(seconds[name]), means([peak_bytes(step) for step in row])
        rows[name] = {
            "ms": 1e3 * sum(by_layer),
            "ms_by_layer": [1e3 * t for t in by_layer],
            "peak_MiB": sum(peaks) / 2**20,
            "peak_MiB_by_layer": [p / 2**20 for p in peaks],
        }
    linear, peer = rows["frozen linear"], rows["LoRA r=8 (PEFT)"]
    print(f"{'':40} {'ms':>7} {'x frozen':>9} {'x LoRA':>7} {'peak MiB':>9} {'x LoRA':>7}")
    for name, row in rows.items():
        row |= {
            "time_over_frozen": row["ms"] / linear["ms"],
            "time_over_lora": row["ms"] / peer["ms"],
            "peak_over_lora": row["peak_MiB"] / peer["peak_MiB"],
        }
        print(
            f"{name:40} {row['ms']:7.0f} {row['time_over_frozen']:9.2f} {row['time_over_lora']:7.2f} "
            f"{row['peak_MiB']:9.1f} {row['peak_over_lora']:7.2f}"
        )
    settings = {"layers": LAYERS, "batch": BATCH, "tokens": chosen.tokens, "drop": DROP, "repeats": chosen.repeats}
    print(write_results("snell", settings, rows))


if __name__ == "__main__":
    main()
