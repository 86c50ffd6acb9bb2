"""Put the recipe's method on the task's model, and look at what is trained."""

from typing import Any

from peft import PeftConfig
from torch import nn

from peft_kernels.registry import methods
from peft_runs.checkpoint import Stateful
from peft_runs.errors import UsageError, unknown
from peft_runs.recipe import MethodSpec


def attach(base: nn.Module, spec: MethodSpec, config: PeftConfig | None = None) -> nn.Module:
    """The PEFT model; without a method, the model itself, all of it trainable.

    Args:
        base: the task's model.
        spec: the recipe's method.
        config: its configuration, where it has looked at data; by default that of the recipe's fields.

    Raises:
        UsageError: unknown method, a value its config refuses, or a target the model does not have.
    """
    if spec.name is None:
        return base.requires_grad_(True)
    known = methods()
    if spec.name not in known:
        raise unknown("method", spec.name, known)
    targets = spec.fields.get("target_modules")
    for target in targets if isinstance(targets, list) else ():
        names = endings(base)
        if target.partition("[")[0] not in names:
            raise unknown(f"target of {type(base).__name__}", target, names)
    try:
        return known[spec.name].attach(base, config, **spec.fields)
    except (TypeError, ValueError, KeyError) as error:
        reason = error.args[0] if error.args else type(error).__name__
        raise UsageError(f"method {spec.name!r} cannot be put on {type(base).__name__}: {reason}") from error


def checkpoint_gradients(base: nn.Module) -> None:
    """Have the model recompute activations in the backward pass, as timm's and diffusers' models offer it.

    Raises:
        UsageError: it does not.
    """
    for name in ("set_grad_checkpointing", "enable_gradient_checkpointing"):
        if hasattr(base, name):
            try:
                return getattr(base, name)()
            except ValueError:
                break
    raise UsageError(f"{type(base).__name__} offers no gradient checkpointing")


def begin_allocation(
    tuner: Any, spec: MethodSpec, steps: int, steps_per_epoch: int, optimizer: Any = None
) -> Stateful | None:
    """Tell the length of the run to a method that divides a budget while training; what it keeps beside parameters.

    One that does something around the optimiser's steps (SaRA) gets to know the optimiser too.

    Raises:
        UsageError: the method's schedule does not suit the run.
    """
    if not hasattr(tuner, "begin_allocation"):
        return None
    try:
        allocator = tuner.begin_allocation(steps, steps_per_epoch)
    except ValueError as error:
        raise UsageError(f"method {spec.name!r} does not suit this run: {error}") from error
    if hasattr(allocator, "watch"):
        allocator.watch(optimizer)
    return allocator


def endings(model: nn.Module) -> set[str]:
    """What may name a module: its dotted name or any end of it (`blocks.0.attn.qkv`, ..., `attn.qkv`, `qkv`)."""
    parts = (name.split(".") for name, _ in model.named_modules() if name)
    return {".".join(words[start:]) for words in parts for start in range(len(words))}


def trainable(model: nn.Module, head: list[str]) -> dict[str, int]:
    """How many numbers are trained: in all, and without the head (modules of the names in `head`, however wrapped)."""
    total = without = 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            total += parameter.numel()
            without += 0 if any(f".{part}." in f".{name}" for part in head) else parameter.numel()
    return {"trainable_parameters": total, "trainable_parameters_without_head": without}


def training_mode(model: nn.Module, adapted: bool) -> None:
    """Training mode, except for norms that nothing trains: their running statistics belong to the frozen model."""
    model.train()
    for module in model.modules() if adapted else ():
        untrained = not any(parameter.requires_grad for parameter in module.parameters())
        if getattr(module, "running_mean", None) is not None and untrained:
            module.eval()


def without_gradient(model: nn.Module) -> list[str]:
    """Trainable parameters that the backward pass did not reach."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
