"""Put the recipe's method on the task's model."""

from torch import nn

from peft_runs.errors import RunError, UsageError, unknown
from peft_runs.recipe import MethodSpec


def attach(base: nn.Module, spec: MethodSpec) -> nn.Module:
    """The PEFT model; without a method, the model itself, all of it trainable.

    Raises:
        UsageError: unknown method, or a value its config refuses.
        RunError: the method does not fit this model.
    """
    if spec.name is None:
        return base.requires_grad_(True)
    from peft import get_peft_model
    from peft_kernels.registry import methods

    known = methods()
    if spec.name not in known:
        raise unknown("method", spec.name, known)
    try:
        config = known[spec.name].config(**spec.fields)
    except (TypeError, ValueError) as error:
        raise UsageError(f"method {spec.name!r} refuses its settings: {error}") from error
    try:
        return get_peft_model(base, config)  # type: ignore[arg-type]
    except (TypeError, ValueError, KeyError) as error:
        raise RunError(f"method {spec.name!r} does not fit {type(base).__name__}: {error}") from error


def trainable(model: nn.Module, head: list[str]) -> dict[str, int]:
    """How many numbers are trained: in all, and without the head (a module named in `head`, wherever it is wrapped)."""
    total = without = 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            total += parameter.numel()
            without += 0 if any(part in name.split(".") for part in head) else parameter.numel()
    return {"trainable_parameters": total, "trainable_parameters_without_head": without}


def freeze_running_statistics(model: nn.Module) -> None:
    """Evaluation mode for norms that nothing trains: their running statistics belong to the frozen model."""
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            if not any(parameter.requires_grad for parameter in module.parameters()):
                module.eval()


def without_gradient(model: nn.Module) -> list[str]:
    """Trainable parameters that the backward pass did not reach."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
