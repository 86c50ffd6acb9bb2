"""An FDConv layer's forward and backward against `nn.Conv2d` and against the formulas written down as they stand.

Batch 4, float32, one thread, 64 groups of frequencies, frozen base with gradients for the input (the convolution trains
its weight). "formulas" is the same layer with `ops.fdconv.reference` for the kernels and bands: autograd keeps every
step of them. Process CPU time, least of several, contestants taking turns; and the bytes that autograd holds for the
backward pass: storages of saved tensors, each once, parameters and buffers excepted.

    python kernels/benchmarks/fdconv.py [--repeats 5] [--batch 4]
"""

import argparse
import warnings
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from measure import cpu_seconds, held_bytes, write_results
from peft import get_peft_model
from torch import Tensor, nn

import vision_peft as vp
from peft_kernels.ops.fdconv import band_masks, reference
from vision_peft.methods.fdconv import adapter
from vision_peft.methods.fdconv.bands import BandModulation

# Channels, kernel size, height and width; the bounds on time over the convolution's, and on MiB held.
SIZES = {(64, 3, 56): (2.2, 12), (256, 3, 14): (3.5, 28), (512, 3, 7): None, (256, 1, 14): None}
CONTESTANTS = ("conv", "fdconv", "formulas")


@dataclass(frozen=True)
class Contestant:
    """A layer, its input and a step of forward and backward."""

    name: str
    layer: nn.Module
    x: Tensor

    def forward(self) -> Tensor:
        if self.name != "formulas":
            return self.layer(self.x)
        with (
            patch.object(adapter, "sample_kernels", reference.sample_kernels),
            patch.object(BandModulation, "forward", bands_as_written),
        ):
            return self.layer(self.x)

    def step(self) -> None:
        y = self.forward()
        y.backward(torch.ones_like(y))
        for tensor in (self.x, *self.layer.parameters()):
            tensor.grad = None

    def held_bytes(self) -> int:
        """Bytes of the storages that the graph keeps for the backward pass, parameters and buffers excepted."""
        standing = [*self.layer.parameters(), *self.layer.buffers()]
        standing += [layer._spectrum.kept[1] for layer in self.layer.modules() if hasattr(layer, "_spectrum")]  # type: ignore[index]
        return held_bytes(self.forward, standing)


def bands_as_written(module: BandModulation, x: Tensor) -> Tensor:
    """`BandModulation.forward` by the formula."""
    return reference.band_modulation(x, module.maps(x), band_masks(module.cuts, *x.shape[-2:], kind=module.masks))


def contestant(name: str, channels: int, kernel: int, size: int, batch: int) -> Contestant:
    """A fresh layer on a fixed input."""
    torch.manual_seed(0)
    layer: Any = nn.Sequential(nn.Conv2d(channels, channels, kernel, padding=kernel // 2))
    if name != "conv":
        config = vp.FdconvConfig(target_modules=["0"], modules_to_save=[], init_weights=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layer = get_peft_model(layer, config)
    x = torch.randn(batch, channels, size, size).relu_().requires_grad_()
    return Contestant(name, layer, x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    print(f"{'channels, kernel, map':<24}" + "".join(f"{name:>12}" for name in (*CONTESTANTS, "÷ conv", "bound")))
    for (channels, kernel, size), bounds in SIZES.items():
        made = {name: contestant(name, channels, kernel, size, settings.batch) for name in CONTESTANTS}
        times = cpu_seconds({name: [each.forward, each.step] for name, each in made.items()}, settings.repeats)
        held = {name: each.held_bytes() / 2**20 for name, each in made.items()}
        figures = {
            "forward ms": ({name: 1000 * times[name][0] for name in made}, None),
            "step ms": ({name: 1000 * times[name][1] for name in made}, bounds and bounds[0]),
            "held MiB": (held, bounds and bounds[1]),
        }
        label = f"{channels}, {kernel}x{kernel}, {size}x{size}"
        print(label)
        rows[label] = {}
        for figure, (values, bound) in figures.items():
            ratio = values["fdconv"] / values["conv"]
            row = {name: round(value, 2) for name, value in values.items()} | {"over_conv": round(ratio, 2)}
            rows[label][figure] = row | {
                "over_formulas": round(values["fdconv"] / values["formulas"], 2),
                "bound": bound,
            }
            print(f"  {figure:<22}" + "".join(f"{value:>12}" for value in (*row.values(), bound or "")))
    print(write_results("fdconv", vars(settings), rows))


if __name__ == "__main__":
    main()
