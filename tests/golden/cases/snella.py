"""SNELLA: the mixed delta in a layer, in training and in a block; and how a budget is divided between layers."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import torch
from torch import Tensor, nn

from peft_kernels.allocation import share_in_float32
from vision_peft.methods.snella import SnellaAllocator, SnellaConfig

from ..comparison import Tolerance
from ..harness import Results
from ..vectors import Vectors
from . import snell
from .attached import Attached

METRICS = {"ipt": "sensitivity", "mag": "magnitude"}  # the authors' names


def config(case: Vectors, scale: float, target_modules: list[str]) -> SnellaConfig:
    """The configuration that a user would write for the case."""
    options = case.options
    return SnellaConfig(
        r=options["rank"],
        num_parts=options.get("parts", 2),
        kernel=options.get("kernel", "mix"),
        scale=scale,
        initial_sparsity=options["sparsity"] or 0.0,
        target_sparsity=1.0,
        gate=options.get("gate", "magnitude"),
        dropout=0.0,
        drop_path=0.0,
        target_modules=target_modules,
        modules_to_save=[],
    )


delta = partial(snell.delta, configure=config)
training = partial(snell.training, configure=config)
vit_block = partial(snell.vit_block, configure=config)


def trace_tolerance(name: str, dtype: torch.dtype) -> Tolerance:
    """Budgets 1e-6, sparsities 1e-6 absolute, scores and running values 1e-4; all as the authors' float32 leaves."""
    if name == "epoch.budget":
        return Tolerance(1e-6)
    return Tolerance(1e-6, absolute=True) if name == "epoch.sparsity" else Tolerance(1e-4)


def volume_tolerance(name: str, dtype: torch.dtype) -> Tolerance:
    """Whole numbers are equal."""
    return Tolerance(0.0)


def allocation_trace(case: Vectors) -> Results:
    """Layers attached and handed the parameters and gradients of each step; the budget is divided at each epoch."""
    options = case.options
    names = [f"layer{index}" for index in range(len(options["dims"]))]
    layers = [(name, nn.Linear(*size)) for name, size in zip(names, options["dims"], strict=True)]
    fields = ("total", "interval", "initial_warmup", "final_warmup", "initial_sparsity", "target_sparsity")
    settings = SnellaConfig(
        r=options["rank"],
        metric=METRICS[options["metric"]],
        **{name: options[name] for name in (*fields, "beta1", "beta2")},
        target_modules=names,
        modules_to_save=[],
    )
    attached = Attached(nn.Sequential(OrderedDict(layers)), settings)
    each = options["steps_per_epoch"]
    allocator = SnellaAllocator(attached.model, steps_per_epoch=each, parity=True)
    entries = sum(allocator.capacity.values())
    scores, rows = [float("nan")] * len(names), []
    for epoch in range(options["total"]):
        budget, due = allocator.schedule.at(epoch, entries)[0], False
        for decided in allocator.history[-1:]:
            if decided["round"] == epoch:  # as the step before this epoch ended
                budget, due, scores = decided["budget"], True, list(decided["scores"].values())
        rows.append((budget, due, scores, list(allocator.sparsity_pattern().values())))
        for step in range(epoch * each, (epoch + 1) * each):
            for name in names:
                for letter in "AB":
                    parameter = attached.parameter(name, f"weight.{letter}")
                    parameter.data = case[f"step{step}.{name}.{letter}"].clone()
                    parameter.grad = case[f"step{step}.{name}.grad_{letter}"].clone()
            allocator.update_and_allocate(step)
    found: dict[str, Tensor] = {
        "epoch.budget": torch.tensor([row[0] for row in rows], dtype=torch.float64),
        "epoch.reallocate": torch.tensor([int(row[1]) for row in rows]),
        "epoch.score": torch.tensor([row[2] for row in rows], dtype=torch.float64),
        "epoch.sparsity": torch.tensor([row[3] for row in rows], dtype=torch.float64),
    }
    for what, tensors in (("ema", allocator.importance.E), ("unc", allocator.importance.U)):
        found |= {f"final.{n.rpartition('.')[0]}.{what}_{n[-1]}": tensor for n, tensor in tensors.items()}
    return {"SnellaConfig": found}


def water_filling(case: Vectors) -> Results:
    """Budgets divided by scores under capacities, in the authors' arithmetic."""
    volumes = {}
    for one in sorted({name.partition(".")[0] for name in case.tensors}):
        budget, score, capacity = (case[f"{one}.{name}"] for name in ("budget", "score", "capacity"))
        volumes[f"{one}.volume"] = share_in_float32(budget.item(), score, capacity)
    return {"parity": volumes}
