"""Peak bytes of a training step above the loaded model.

The figure is: what the adapted model holds more than the loaded one, plus the optimiser's tensors, plus the highest
level that one step reaches above its start (activations, gradients, temporary tensors). On a GPU the allocator reports
that level. On a CPU torch's profiler lists every allocation and release of torch's allocator, to the byte, where the
process's resident size would depend on the machine, on earlier peaks and on pages the allocator keeps. Not seen on a
CPU: scratch memory that oneDNN allocates for itself. Several processes: the first one's, without DDP's buckets.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages under the tensors, each storage once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def bytes_of_model(model: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return bytes_of([*model.parameters(), *model.buffers()])


def bytes_of_optimizer(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the optimiser's tensors."""
    return bytes_of(
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)
    )


@contextmanager
def highest_level(device: torch.device) -> Iterator[list[int]]:
    """Measure the block: afterwards the list holds one number, the bytes reached above the block's start."""
    level: list[int] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        yield level
        level.append(torch.cuda.max_memory_allocated(device) - start)
        return
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield level
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    level.append(_highest(events))


def _highest(events: list[dict]) -> int:
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"]
    now = highest = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        now += change
        highest = max(highest, now)
    return highest
