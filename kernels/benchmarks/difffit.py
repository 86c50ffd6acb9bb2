"""DiffFit on blocks of DiT-XL/2 against full fine-tuning, PEFT's LoRA and BitFit, time and memory of a training step.

diffusers' DiT of width 1152 with 16 heads on 256 tokens and few blocks, float32, one thread: forward, backward and
AdamW, process CPU time and peak bytes above the loaded model, the optimiser's included. "frozen" trains the last
projection's bias alone, so that it is the forward pass. Class tables are frozen in all: LoRA has none.

    python kernels/benchmarks/difffit.py [--repeats 2] [--blocks 2] [--batch 2]
"""

import argparse
from collections.abc import Callable
from typing import Any

import peft
import torch
from diffusers import DiTTransformer2DModel
from measure import Step, cpu_seconds, peak_bytes, write_results
from torch import Tensor, nn

import diffusion_peft as dp

WIDTH, HEADS, SIZE, CLASSES = 1152, 16, 32, 100
QKV = ["to_q", "to_k", "to_v"]
EVERY = [*QKV, "to_out.0", "ff.net.0.proj", "ff.net.2", "norm1.linear"]
ALL_SITES = ["attn_out", "ffn_out", "q", "k", "v", "o"]


def _lora(targets: list[str]) -> peft.LoraConfig:
    return peft.LoraConfig(r=8, target_modules=targets)


CONTESTANTS: dict[str, Any] = {
    "full": None,
    "frozen": dp.DiffFitConfig(gamma_sites=[], train_embedding=False, target_modules=["proj_out_2"]),
    "LoRA r=8, qkv": _lora(QKV),
    "LoRA r=8, all linears": _lora(EVERY),
    "BitFit": dp.DiffFitConfig(gamma_sites=[], train_embedding=False),
    "DiffFit": dp.DiffFitConfig(gamma_blocks="all", train_embedding=False),
    "DiffFit, factors on q, k, v, o too": dp.DiffFitConfig(
        gamma_blocks="all", gamma_sites=ALL_SITES, train_embedding=False
    ),
}


def model_of(config: Any, blocks: int) -> nn.Module:
    """The model with a method on it, ready for training."""
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        out_channels=8,
        num_layers=blocks,
        sample_size=SIZE,
        num_embeds_ada_norm=CLASSES,
    )
    if config is None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("class_embedder" not in name)
        return model.train()
    return peft.get_peft_model(model, config).train()  # type: ignore[arg-type]


def step_of(config: Any, blocks: int, batch: int) -> tuple[Step, Callable[[], int], int]:
    """One training step of a fresh model, the bytes of its optimiser's tensors, the number of trained parameters."""
    model = model_of(config, blocks)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    latents, noise = torch.randn(2, batch, 4, SIZE, SIZE).unbind()
    timesteps, labels = torch.randint(1000, (batch,)), torch.randint(CLASSES, (batch,))

    def step() -> None:
        predicted: Tensor = model(latents, timesteps, labels, return_dict=False)[0]
        (predicted[:, :4] - noise).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    def held() -> int:
        return sum(t.nbytes for state in optimiser.state.values() for t in state.values() if isinstance(t, Tensor))

    return step, held, sum(p.numel() for p in trained)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--batch", type=int, default=2)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    steps = {name: step_of(config, settings.blocks, settings.batch) for name, config in CONTESTANTS.items()}
    seconds = cpu_seconds({name: [step] for name, (step, _, _) in steps.items()}, settings.repeats)
    peaks = {name: peak_bytes(step) + held() for name, (step, held, _) in steps.items()}
    rows = {}
    print(f"{'method':<36}{'trained':>12}{'ms':>9}{'÷ full':>8}{'peak MiB':>10}{'÷ full':>8}{'÷ LoRA qkv':>12}")
    for name, (_, _, trained) in steps.items():
        rows[name] = {
            "trained": trained,
            "ms": round(1e3 * seconds[name][0], 1),
            "time_over_full": round(seconds[name][0] / seconds["full"][0], 3),
            "peak_mib": round(peaks[name] / 2**20, 1),
            "peak_over_full": round(peaks[name] / peaks["full"], 3),
            "peak_over_lora": round(peaks[name] / peaks["LoRA r=8, qkv"], 3),
        }
        widths = (12, 9, 8, 10, 8, 12)
        print(f"{name:<36}" + "".join(f"{v:>{w}}" for v, w in zip(rows[name].values(), widths, strict=True)))
    print(write_results("difffit", {**vars(settings), "width": WIDTH, "heads": HEADS, "size": SIZE}, rows))


if __name__ == "__main__":
    main()
