"""A training step of SCEdit on a UNet of Stable Diffusion 1.5's form against PEFT's LoRA (r = 8 on attention).

Four levels, two ResNets each, 12 skips, attention as published, with fewer channels: forward and backward on random
latents in float32, one thread. Process CPU time, least of several, contestants taking turns; and the bytes that
autograd holds for the backward pass: storages of saved tensors, each once, parameters excepted. "keeping" is SCEdit
with stock convolutions in the decoder; "control" has a condition image too.

    python kernels/benchmarks/scedit.py [--repeats 4] [--width 32] [--size 32] [--batch 2]
"""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from measure import cpu_seconds, held_bytes, peak_bytes, write_results
from peft import LoraConfig
from torch import Tensor

import diffusion_peft as dp
from peft_kernels.frozen import remember_inputs

PEER = "lora"
LORA = LoraConfig(r=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
CONTESTANTS: dict[str, Any] = {
    PEER: LORA,
    "scedit": dp.SceditConfig(),
    "scedit, keeping": dp.SceditConfig(),
    "scedit, control": dp.SceditConfig(control=True, dense_kernel=1),
    "full": None,
}


def unet(width: int, size: int) -> Any:
    """The UNet of SD 1.5 with `width` channels where that has 320."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=size,
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        attention_head_dim=8,
        norm_num_groups=min(32, width),
        cross_attention_dim=2 * width,
    )


@dataclass(frozen=True)
class Contestant:
    """A model, its loss on a fixed batch, and a step of forward and backward."""

    model: Any
    loss: Callable[[], Tensor]

    @property
    def trained(self) -> list[Tensor]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def step(self) -> None:
        self.loss().backward()
        for parameter in self.trained:
            parameter.grad = None

    def held_bytes(self) -> int:
        """Bytes of the storages that the graph keeps for the backward pass, parameters excepted."""
        return held_bytes(self.loss, self.model.parameters())


def contestant(name: str, width: int, size: int, batch: int) -> Contestant:
    """A fresh model with the method attached."""
    model, config = unet(width, size), CONTESTANTS[name]
    if config is not None:
        model.add_adapter(config)
    if name == "scedit, keeping":
        remember_inputs(model.modules())
    generator = torch.Generator().manual_seed(1)
    latents, text = (torch.randn(*s, generator=generator) for s in ((batch, 4, size, size), (batch, 77, 2 * width)))
    times, images = torch.full((batch,), 500), torch.rand(batch, 3, 8 * size, 8 * size, generator=generator)
    model.train()

    def loss() -> Tensor:
        with dp.condition_on(model, images) if "control" in name else nullcontext():
            return model(latents, times, text).sample.square().mean()

    return Contestant(model, loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    made = {name: contestant(name, settings.width, settings.size, settings.batch) for name in CONTESTANTS}
    seconds = cpu_seconds({name: [each.step] for name, each in made.items()}, settings.repeats)
    held = {name: each.held_bytes() for name, each in made.items()}
    peaks = {name: peak_bytes(each.step) for name, each in made.items()}
    rows = {
        name: {
            "trained": sum(p.numel() for p in each.trained),
            "ms": round(1000 * seconds[name][0], 1),
            "time_over_lora": round(seconds[name][0] / seconds[PEER][0], 3),
            "held_mib": round(held[name] / 2**20, 1),
            "held_over_lora": round(held[name] / held[PEER], 3),
            "peak_mib": round(peaks[name] / 2**20, 1),
            "peak_over_lora": round(peaks[name] / peaks[PEER], 3),
        }
        for name, each in made.items()
    }
    widths = (10, 9, 9, 10, 9, 10, 9)
    heads = ("trained", "ms", "÷ LoRA", "held MiB", "÷ LoRA", "peak MiB", "÷ LoRA")
    print(f"{'method':<16}" + "".join(f"{head:>{w}}" for head, w in zip(heads, widths, strict=True)))
    for name, row in rows.items():
        print(f"{name:<16}" + "".join(f"{value:>{w}}" for value, w in zip(row.values(), widths, strict=True)))
    print(write_results("scedit", vars(settings), rows))


if __name__ == "__main__":
    main()
