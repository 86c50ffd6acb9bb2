"""Seconds to attach, save and load every method on a UNet of the size of Stable Diffusion 1.5, and the file's size.

Process CPU time, one thread, each once: 860 million random parameters in float32 (or `--dtype`), the methods with their
defaults, and SaRA by a density too. The file is compared with what the trained numbers need, four bytes each, eight
where places are saved too, and with that and the head of the file, which holds each tensor's name, dtype and shape.

    python kernels/benchmarks/attach_unet.py [--methods lora snell] [--dtype bfloat16]
"""

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from measure import write_results
from peft import PeftConfig
from torch import nn

import diffusion_peft as dp
from peft_kernels.registry import methods

BOUND = 5.0  # seconds
BY_DENSITY = "sara, density"
CONFIG: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}


def unet(dtype: torch.dtype) -> nn.Module:
    """The UNet, filled with one block of random numbers again and again: drawing all of them would take minutes."""
    with torch.device("meta"):
        model: Any = diffusers.UNet2DConditionModel(**CONFIG)
    model = model.to(dtype).to_empty(device="cpu").eval()
    block = 0.02 * torch.randn(2**20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            for part in parameter.view(-1).split(len(block)):
                part.copy_(block[: len(part)])
    return model.requires_grad_(False)


def seconds(do: Callable[[], object]) -> float:
    """CPU time of the process."""
    start = time.process_time()
    do()
    return time.process_time() - start


def measure(model: nn.Module, config: PeftConfig) -> dict:
    """The figures of one method; the model is as before."""
    row: dict = {"attach": seconds(lambda: dp.add_adapter(model, config))}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with tempfile.TemporaryDirectory() as folder:
        row["save"] = seconds(lambda: dp.save_adapter(model, folder))
        size = (Path(folder) / "adapter_model.safetensors").stat().st_size
        head, keys = _head(Path(folder) / "adapter_model.safetensors")
        need = trained * (8 if any("index" in key or "indices" in key for key in keys) else 4)
        dp.delete_adapters(model, "default")
        row["load"] = seconds(lambda: dp.load_adapter(model, folder))
        dp.delete_adapters(model, "default")
    ratios = {"size_to_need": size / need, "size_to_need_and_head": size / (need + head)}
    return {**row, "parameters": trained, "bytes": size, **ratios}


def _head(path: Path) -> tuple[int, list[str]]:
    """Bytes before the first tensor of a safetensors file, and the tensors' names."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return 8 + length, list(json.loads(file.read(length)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", default=None)
    parser.add_argument("--dtype", default="float32")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model = unet(getattr(torch, settings.dtype))
    configs: dict[str, Callable[..., PeftConfig]] = {name: method.config for name, method in methods().items()}
    configs[BY_DENSITY] = lambda: dp.SaraConfig(density=0.058)
    rows = {}
    print(f"{'':<14}{'attach':>8}{'save':>8}{'load':>8}{'parameters':>14}{'MB':>10}{'size':>8}{'+ head':>8}")
    for name in settings.methods or configs:
        try:
            row = measure(model, configs[name]())
        except ValueError as error:
            print(f"{name:<14}{str(error).partition(':')[0]}")
            continue
        rows[name] = {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
        times = "".join(f"{row[key]:>7.2f}{' ' if row[key] <= BOUND else '!'}" for key in ("attach", "save", "load"))
        print(
            f"{name:<14}{times}{row['parameters']:>14,}{row['bytes'] / 1e6:>10.2f}{row['size_to_need']:>8.3f}"
            f"{row['size_to_need_and_head']:>8.3f}",
            flush=True,
        )
    print(write_results("attach_unet", vars(settings), rows))


if __name__ == "__main__":
    main()
