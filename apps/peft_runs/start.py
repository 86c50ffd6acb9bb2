"""The process, or one of several, that a run is carried out in: device, precision, threads, trackers."""

import os

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from peft_runs.errors import RunError, UsageError, unknown
from peft_runs.recipe import RunSpec
from peft_runs.run_folder import RunFolder


def start_accelerator(spec: RunSpec, folder: RunFolder | None = None) -> Accelerator:
    """Processes, device and precision as the recipe says.

    Raises:
        UsageError: the machine cannot compute in this precision, or there is no such tracker.
        RunError: several processes were started, but they do not work together.
    """
    if spec.tracker and spec.tracker not in LOGGER_TYPE_TO_CLASS:
        raise unknown("tracker", spec.tracker, LOGGER_TYPE_TO_CLASS)
    if spec.tracker and spec.tracker not in map(str, get_available_trackers()):
        raise UsageError(f"the tracker {spec.tracker!r} is not installed: pip install {spec.tracker}")
    where = str(folder.path) if folder and spec.tracker else None
    # Several processes on a machine without an accelerator work together only where accelerate is told to use the CPU.
    cpu = spec.device == "cpu" or not torch.accelerator.is_available()
    if cpu and spec.precision == "fp16":  # accelerate would compute in float32 without a word
        raise UsageError("run.precision fp16 needs a GPU: on a CPU choose bf16 or no")
    try:
        accelerator = Accelerator(mixed_precision=spec.precision, cpu=cpu, log_with=spec.tracker, project_dir=where)
    except ValueError as error:
        raise UsageError(" ".join(str(error).split())) from None
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise RunError(
            f"{started} processes were started, but accelerate sees {accelerator.num_processes}: use torchrun"
        )
    return accelerator
