"""Time and memory of a training step, as the benchmarks of this folder count them, and the file they leave."""

import json
import platform
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], object]


def classifying_step(model: nn.Module, batch: int, side: int) -> Step:
    """A step of AdamW on a classifier of 100 classes or more, on random pictures ``[batch, 3, side, side]``."""
    model.train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    images, labels = torch.randn(batch, 3, side, side), torch.randint(100, (batch,))

    def step() -> None:
        F.cross_entropy(model(images), labels).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def cpu_seconds(steps: dict[str, list[Step]], repeats: int) -> dict[str, list[float]]:
    """Least process CPU time of each step of each contestant.

    Contestants take turns step by step, so that whatever else the machine does falls on all of them; process CPU time
    does not count the time in which another process held the core.
    """
    best = {name: [float("inf")] * len(row) for name, row in steps.items()}
    for _ in range(repeats + 1):
        for index in range(max(len(row) for row in steps.values())):
            for name, row in ((name, row) for name, row in steps.items() if index < len(row)):
                start = time.process_time()
                row[index]()
                best[name][index] = min(best[name][index], time.process_time() - start)
    return best


def peak_bytes(step: Step) -> int:
    """Most bytes a step held at once beyond what stood before it.

    From the profiler's allocation events, which see every allocation of torch's CPU allocator, those inside of opaque
    operators too; the scratch of numpy and MKL is not torch's and not seen (some 300 KiB here).
    """
    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    results = record.profiler.kineto_results if record.profiler is not None else None
    assert results is not None
    events = sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]")  # pyright: ignore[reportAttributeAccessIssue]
    held = peak = 0
    for _, size in events:
        held += size
        peak = max(peak, held)
    return peak


def held_bytes(forward: Callable[[], Tensor], standing: Iterable[Tensor]) -> int:
    """Bytes of the storages that a forward pass keeps for backward, each once, those of ``standing`` excepted."""
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = forward()  # its graph stands while the storages are counted, so that none takes another's place
    assert y.requires_grad
    known = {tensor.untyped_storage().data_ptr() for tensor in standing}
    return sum(size for place, size in held.items() if place not in known)


def device_name() -> str:
    """The processor as it names itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{names[0] if names else platform.processor() or platform.machine()} ({capability})"


def write_results(name: str, settings: dict, rows: dict) -> Path:
    """Keep a benchmark's figures beside it, with what they were measured on."""
    machine = {
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "peft")},
    }
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "settings": settings, "rows": rows}, indent=2) + "\n")
    return path
