"""A training step of ViT-B/16 with each method against PEFT's LoRA (r = 8 on all linear layers), and its peak memory.

Forward, backward and optimiser step of `vit_base_patch16_224` on random images in float32, one thread: process CPU
time, least of several, and peak bytes above the standing tensors. The floor is the frozen model with a trained head.

    python kernels/benchmarks/step.py [--repeats 4] [--batch 4]
"""

import argparse

import timm
import torch
from measure import Step, classifying_step, cpu_seconds, peak_bytes, write_results

from peft_kernels.registry import method

PEER = "lora"
CONTESTANTS = {
    "linear_probe": {},
    PEER: {"r": 8, "lora_alpha": 8},
    "ssf": {},
    "bitfit": {},
    "adapter_plus": {"r": 8},
    "snell": {"r": 8, "sparsity": 0.5, "dropout": 0.0, "drop_path": 0.0},
    "full": {},
}


def step_of(name: str, fields: dict, batch: int) -> Step:
    """One training step of a fresh model with the method attached."""
    torch.manual_seed(0)
    model = method(name).attach(timm.create_model("vit_base_patch16_224", num_classes=100), **fields)
    return classifying_step(model, batch, 224)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    steps = {name: [step_of(name, fields, settings.batch)] for name, fields in CONTESTANTS.items()}
    seconds = {name: row[0] for name, row in cpu_seconds(steps, settings.repeats).items()}
    peaks = {name: peak_bytes(row[0]) for name, row in steps.items()}
    rows = {
        name: {
            "ms": round(1000 * seconds[name], 1),
            "time_over_lora": round(seconds[name] / seconds[PEER], 3),
            "time_over_frozen": round(seconds[name] / seconds["linear_probe"], 3),
            "peak_mib": round(peaks[name] / 2**20, 1),
            "peak_over_lora": round(peaks[name] / peaks[PEER], 3),
        }
        for name in CONTESTANTS
    }
    print(f"{'method':<14}{'ms':>9}{'÷ LoRA':>9}{'÷ frozen':>10}{'peak MiB':>10}{'÷ LoRA':>9}")
    for name, row in rows.items():
        print(
            f"{name:<14}" + "".join(f"{value:>{w}}" for value, w in zip(row.values(), (9, 9, 10, 10, 9), strict=True))
        )
    print(write_results("step", vars(settings), rows))


if __name__ == "__main__":
    main()
