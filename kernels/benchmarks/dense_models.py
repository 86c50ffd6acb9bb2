"""A training step of the dense models against their plain counterparts: throughput and peak memory of whole models.

`fdconv_resnet50` against `resnet50`, in both modes, and `piip_vit_tsb` against the best of its branches alone,
`deit_base_patch16_224`, which does as many multiplications (17.4 and 17.6 G). Forward, backward and optimiser step on
random pictures in float32, one thread: process CPU time, least of several, contestants taking turns, and peak bytes
above the standing tensors.

    python kernels/benchmarks/dense_models.py [--repeats 2] [--batch 2]
"""

import argparse
from typing import Any

import timm
import torch
from measure import Step, classifying_step, cpu_seconds, peak_bytes, write_results
from peft import get_peft_model

import vision_peft as vp

# Each with its plain counterpart.
CONTESTANTS = {
    "resnet50": "resnet50",
    "fdconv_resnet50": "resnet50",
    "resnet50 + FdconvConfig": "resnet50",
    "deit_base_patch16_224": "deit_base_patch16_224",
    "piip_vit_tsb": "deit_base_patch16_224",
    "piip_vit_tsb + interactions": "deit_base_patch16_224",
}


def model_of(name: str) -> Any:
    """A fresh model; one with a plus has frozen weights and an adapter."""
    base, _, adapter = name.partition(" + ")
    model: Any = timm.create_model(base, num_classes=100)
    if not adapter:
        return model
    return get_peft_model(model, vp.FdconvConfig() if adapter == "FdconvConfig" else vp.interactions_config(model))


def step_of(name: str, batch: int) -> Step:
    """One training step of a fresh model."""
    torch.manual_seed(0)
    model = model_of(name)
    return classifying_step(model, batch, model.default_cfg["input_size"][-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--batch", type=int, default=2)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, dict[str, float]] = {}
    for plain in dict.fromkeys(CONTESTANTS.values()):
        steps = {name: [step_of(name, settings.batch)] for name, peer in CONTESTANTS.items() if peer == plain}
        seconds = {name: row[0] for name, row in cpu_seconds(steps, settings.repeats).items()}
        peaks = {name: peak_bytes(row[0]) for name, row in steps.items()}
        for name in steps:
            rows[name] = {
                "pictures_per_second": round(settings.batch / seconds[name], 2),
                "time_over_plain": round(seconds[name] / seconds[plain], 2),
                "peak_mib": round(peaks[name] / 2**20),
                "peak_over_plain": round(peaks[name] / peaks[plain], 2),
            }
    print(f"{'model':<30}{'pictures/s':>12}{'÷ plain':>10}{'peak MiB':>10}{'÷ plain':>10}")
    for name, row in rows.items():
        print(f"{name:<30}" + "".join(f"{v:>{w}}" for v, w in zip(row.values(), (12, 10, 10, 10), strict=True)))
    print(write_results("dense_models", vars(settings), rows))


if __name__ == "__main__":
    main()
