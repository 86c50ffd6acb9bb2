"""AdamW, its groups of parameters, and the learning rate of every step."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from timm.scheduler import CosineLRScheduler
from torch import nn

from peft_kernels.registry import methods
from peft_runs.recipe import OptimSpec

Own = Callable[[str], Mapping[str, float]]


def parameter_groups(
    model: nn.Module, undecayed: set[str], weight_decay: float, lr: float = 1.0, own: Own = lambda name: {}
) -> list[dict]:
    """Trainable parameters by weight decay and learning rate, with weight decay first.

    Not decayed: parameters of fewer than two dimensions, and those the model names in `no_weight_decay()`. What the
    method asks for itself, `own(name)`, comes before that.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {(weight_decay, lr): [], (0.0, lr): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            keep = parameter.ndim < 2 or any(name == other or name.endswith("." + other) for other in undecayed)
            asked = own(name)
            decay = asked.get("weight_decay", 0.0 if keep and not asked.get("decays") else weight_decay)
            groups.setdefault((decay, lr * asked.get("lr_ratio", 1.0)), []).append(parameter)
    return [{"params": found, "weight_decay": d, "lr": rate} for (d, rate), found in groups.items() if found]


def _asked_by_method(model: nn.Module) -> Own:
    """What the method on `model` asks for its parameters."""
    for config in getattr(model, "peft_config", {}).values():
        for method in methods().values():
            if method.group is not None and type(config) is method.config_class:
                return partial(method.group, config)
    return lambda name: {}


def build_optimizer(model: nn.Module, base: nn.Module, spec: OptimSpec) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `model`; `base` is the model underneath, which may name exceptions."""
    undecayed = set(base.no_weight_decay()) if hasattr(base, "no_weight_decay") else set()  # type: ignore[operator]
    groups = parameter_groups(model, undecayed, spec.weight_decay, spec.lr, _asked_by_method(model))
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
