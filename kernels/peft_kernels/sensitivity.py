"""Sensitivity of a loss to every single weight, from a few backward passes: ``S = Σ_b g_b ⊙ g_b``.

He et al.: "Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning" (SPT), ICCV 2023, Eq. 4: to first order, one
gradient step at a single weight lowers the loss by ``ε g²``. As in the authors' code, ``g_b`` is the gradient of a
batch's mean loss. Each gradient is squared and freed as soon as it is there: beside S, one of them exists at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from peft_kernels.config import nearest

Loss = Callable[[nn.Module, Any], Tensor]
MODES = ("train", "eval")


def sensitivity(
    model: nn.Module,
    loader: Iterable[Any],
    loss: Loss | None = None,
    num_batches: int | None = 16,
    *,
    parameters: Iterable[str] | None = None,
    accumulate: int = 1,
    per_sample: bool = False,
    scoring_mode: str = "train",
    seed: int = 0,
) -> dict[str, Float[Tensor, "..."]]:
    """The sensitivity of each parameter, by name, in float32 (float64 for float64 parameters).

    The model is left as it was: its flags, modes, gradients, buffers, and the random generators, also after an error.

    Args:
        model: any model, on any device.
        loader: batches; they are moved to the model's device.
        loss: mean loss of one batch, ``loss(model, batch) → []``; cross-entropy of ``(inputs, labels)`` if not given.
        num_batches: gradients that are squared; fewer if the loader ends before, ``None`` takes all of it.
        parameters: names of the parameters that are scored; all floating-point ones if not given.
        accumulate: batches of the loader whose mean gradient makes one ``g_b``.
        per_sample: square the gradient of each sample, as the paper's text has it, instead of each batch's.
        scoring_mode: ``train`` (stochastic depth and dropout as in training, drawn from ``seed``) or ``eval``.
        seed: of what is random in the passes and in the loader.

    Raises:
        ValueError: an unknown parameter or mode, a loader that yields nothing, a loss or score that is NaN or infinite
            (with the batch, or the parameter), a loss that depends on none of the parameters.
    """
    if scoring_mode not in MODES:
        raise ValueError(f"scoring_mode must be one of {', '.join(MODES)}; found {scoring_mode!r}")
    if accumulate < 1 or (num_batches is not None and num_batches < 1):
        raise ValueError(f"num_batches and accumulate must be at least 1; found {num_batches} and {accumulate}")
    chosen = _chosen(model, parameters)
    scores = {name: torch.zeros_like(p, dtype=_wide(p.dtype), requires_grad=False) for name, p in chosen.items()}
    steps = None if num_batches is None else num_batches * accumulate
    device = next(iter(chosen.values())).device
    squaring = False
    hooks = []

    def accumulate_square(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            if squaring:
                assert parameter.grad is not None
                gradient = parameter.grad.to(scores[name].dtype)
                scores[name].add_(gradient.mul_(gradient))  # two roundings, as in the authors' code: `addcmul_` has one
                parameter.grad = None

        return hook

    with _as_it_was(model, chosen, scoring_mode == "train", seed, device), torch.enable_grad():
        hooks = [p.register_post_accumulate_grad_hook(accumulate_square(name)) for name, p in chosen.items()]
        try:
            done = 0
            for batch in islice(loader, steps):
                batch = _moved(batch, device)
                for part in _samples(batch) if per_sample else (batch,):
                    value = (loss or _cross_entropy)(model, part)
                    _check_loss(value, done)
                    squaring = per_sample or (done + 1) % accumulate == 0
                    (value if per_sample else value / accumulate).backward()
                done += 1
            if done < accumulate:
                raise ValueError(f"the loader gave {done} batches; at least {accumulate} are needed to score a model")
        finally:
            for hook in hooks:
                hook.remove()
    for name, score in scores.items():
        if score.numel() and not torch.isfinite(score.max()):
            raise ValueError(f"the scores of {name!r} hold NaN or infinity: its gradients overflow or are not numbers")
    return scores


def _chosen(model: nn.Module, names: Iterable[str] | None) -> dict[str, nn.Parameter]:
    known = dict(model.named_parameters())
    wanted = [name for name, p in known.items() if p.is_floating_point()] if names is None else list(names)
    for name in wanted:
        if name not in known:
            raise ValueError(f"{type(model).__name__} has no parameter {name!r}{nearest(name, known)}")
    if not wanted:
        raise ValueError(f"there is nothing to score: no parameters of {type(model).__name__} are named")
    return {name: known[name] for name in wanted}


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        raise ValueError(
            f"without `loss` a batch must be a pair (inputs, labels); found {type(batch).__name__}: "
            "give `loss=lambda model, batch: ...`"
        )
    return F.cross_entropy(model(batch[0]).float(), batch[1])


def _check_loss(value: Tensor, batch: int) -> None:
    if not torch.isfinite(value.detach()).all():
        raise ValueError(f"the loss of batch {batch} is {float(value.detach())}, not a finite number")
    if not value.requires_grad:
        raise ValueError(f"the loss of batch {batch} depends on none of the scored parameters")


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: _moved(value, device) for key, value in batch.items()}
    return type(batch)(_moved(value, device) for value in batch) if type(batch) in (tuple, list) else batch


def _samples(batch: Any) -> Iterator[Any]:
    """Batches of one sample; the first dimension of every tensor counts samples."""
    parts = batch if isinstance(batch, Tensor) else batch.values() if isinstance(batch, dict) else batch
    count = len(parts) if isinstance(parts, Tensor) else len(next(part for part in parts if isinstance(part, Tensor)))
    for i in range(count):
        yield _cut(batch, i)


def _cut(batch: Any, i: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[i : i + 1]
    if isinstance(batch, dict):
        return {key: _cut(value, i) for key, value in batch.items()}
    return type(batch)(_cut(value, i) for value in batch) if isinstance(batch, (tuple, list)) else batch


@contextmanager
def _as_it_was(
    model: nn.Module, chosen: dict[str, nn.Parameter], training: bool, seed: int, device: torch.device
) -> Iterator[None]:
    """Within, the chosen parameters alone take gradients; afterwards nothing of the model or the generators differs."""
    parameters = list(model.parameters())
    flags, gradients = [p.requires_grad for p in parameters], [p.grad for p in parameters]
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    scored = {id(p) for p in chosen.values()}
    devices = [device] if device.type != "cpu" else []
    try:
        with torch.random.fork_rng(devices=devices, device_type=device.type if devices else "cuda"):
            torch.manual_seed(seed)
            model.train(training)
            for parameter in parameters:
                parameter.requires_grad_(id(parameter) in scored)
                parameter.grad = None
            yield
    finally:
        for parameter, flag, gradient in zip(parameters, flags, gradients, strict=True):
            parameter.requires_grad_(flag)
            parameter.grad = gradient
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
