"""AdamW, its two groups of parameters, and the learning rate of every step."""

import torch
from timm.scheduler import CosineLRScheduler
from torch import nn

from peft_runs.recipe import OptimSpec


def parameter_groups(model: nn.Module, undecayed: set[str], weight_decay: float) -> list[dict]:
    """Trainable parameters with and without weight decay.

    Not decayed: parameters of fewer than two dimensions, and those the model names in `no_weight_decay()`.
    """
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            keep = parameter.ndim < 2 or any(name == other or name.endswith("." + other) for other in undecayed)
            (plain if keep else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, base: nn.Module, spec: OptimSpec) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `model`; `base` is the model underneath, which may name exceptions."""
    undecayed = set(base.no_weight_decay()) if hasattr(base, "no_weight_decay") else set()  # type: ignore[operator]
    groups = parameter_groups(model, undecayed, spec.weight_decay)
    return torch.optim.AdamW(groups, lr=spec.lr, betas=(spec.beta1, spec.beta2))


def build_schedule(optimizer: torch.optim.Optimizer, spec: OptimSpec, steps: int, per_epoch: int) -> CosineLRScheduler:
    """Linear warm-up, then a cosine down to `min_lr` at the last step; call `step_update` with 1, 2, ..."""
    warmup = min(round(spec.warmup_epochs * per_epoch), steps // 2)
    return CosineLRScheduler(
        optimizer,
        t_initial=max(steps - warmup, 2),
        lr_min=spec.min_lr,
        warmup_t=warmup,
        warmup_lr_init=0.0,
        warmup_prefix=True,
        t_in_epochs=False,
    )
