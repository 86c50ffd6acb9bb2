"""What is measured on pictures of one step: their likeness to the teacher's from the same noise, and their time."""

import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from diffusion_peft.methods.hipa import HipaLossSpec
from peft_kernels.ops import highpass, highpass_mask
from peft_runs.pipeline_measures import frechet

TOGETHER, REPEATS = 8, 3  # pictures of a call; the least time of several counts


def one_step_figures(found: Tensor, wanted: Tensor) -> dict[str, float]:
    """Pictures of one step against the teacher's, picture by picture, uint8 `[N, 3, S, S]`."""
    found, wanted = found / 255, wanted / 255
    spec, (height, width) = HipaLossSpec(), found.shape[-2:]
    mask = highpass_mask(spec.highpass, height, width, spec.cutoff, spec.order, found.device)
    energies = [highpass(images, mask).square().mean().item() for images in (found, wanted)]
    likeness: Any = structural_similarity_index_measure(found, wanted, data_range=1.0)
    return {
        "frechet": frechet(wanted, found),
        "sharpness": energies[0] / max(energies[1], 1e-12),
        "ssim": float(likeness),
    }


def one_step_times(task: Any, teacher: float | None = None) -> dict[str, float]:
    """`milliseconds` a picture of one step, the teacher's, and how many times faster it is: captions in, pictures out.

    Args:
        task: its pipeline is open, with the model to time.
        teacher: its milliseconds a picture; measured here when not given.
    """
    calls = task.compared().calls(TOGETHER)
    if teacher is not None:
        del calls["teacher"]
    least = dict.fromkeys(calls, float("inf"))
    for _ in range(REPEATS):
        least = {name: min(least[name], 1000 * seconds_of(call) / TOGETHER) for name, call in calls.items()}
    many = least["teacher"] if teacher is None else teacher
    return {"milliseconds": least["one"], "teacher_milliseconds": many, "speedup": many / least["one"]}


def seconds_of(call: Callable[[], object]) -> float:
    """On a CPU the process's own time, which others on the machine do not change; elsewhere by the clock."""
    device: Any = PartialState().device
    clock = time.process_time if device.type == "cpu" else time.monotonic
    begun = clock()
    call()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return clock() - begun
