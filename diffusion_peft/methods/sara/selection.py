"""Which entries SaRA trains: those below a threshold, which is given or found for a wanted number."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor, nn

from peft_kernels.magnitude import below, count_below, smallest, values_at
from peft_kernels.owners import own_tensors, tensor_owners
from peft_kernels.targets import head_names

if TYPE_CHECKING:
    from diffusion_peft.methods.sara.config import SaraConfig

_HALF = (torch.float16, torch.bfloat16)


def eligible(config: SaraConfig, module: nn.Module) -> dict[str, nn.Parameter]:
    """The tensors of one module that take part, by their names within it."""
    found = {}
    for name, tensor in own_tensors(module).items():
        if isinstance(module, nn.Embedding):
            wanted = config.train_embedding
        elif tensor.ndim > 1:
            wanted = True
        else:
            wanted = config.train_bias if name.rpartition(".")[2].endswith("bias") else config.train_norm
        if wanted:
            found[name] = tensor
    return found


def owners(config: SaraConfig, model: nn.Module) -> dict[str, nn.Module]:
    """The modules outside the classifier that have such tensors."""
    heads = tuple(f"{head}." for head in head_names(model))
    return {n: m for n, m in tensor_owners(model) if eligible(config, m) and not f"{n}.".startswith(heads)}


@dataclass(frozen=True)
class Selection:
    """What is trained.

    Attributes:
        places: flat, ascending places by tensor; tensors without any are left out.
        values: what the tensors hold there.
        threshold: θ; ``None`` where each tensor has its own.
    """

    places: dict[str, Int[Tensor, " count"]]
    values: dict[str, Tensor]
    threshold: float | None


def select(config: SaraConfig, tensors: Mapping[str, Tensor]) -> Selection:
    """The entries that ``config`` trains of these tensors, each of which is given under one name.

    Raises:
        ValueError: there are no tensors with values, a tensor is quantised, or nothing or everything is selected.
    """
    check(tensors)
    entries = sum(tensor.numel() for tensor in tensors.values())
    share = config.density if config.num_trainable is None else config.num_trainable / entries
    if share is not None and share >= 1:
        raise ValueError(
            f"SaraConfig.num_trainable must be less than the {entries:,} entries; found {share * entries:,.0f}"
        )
    every = tensors.values()
    if share is None:
        threshold = float(config.threshold or 0)
        found = [below(tensor, threshold) for tensor in every]
        values = [values_at(*of) for of in zip(every, found, strict=True)]
    elif config.scope == "global":
        threshold, found, values = smallest(every, round(share * entries))
    else:
        threshold, each = None, [smallest([tensor], round(share * tensor.numel())) for tensor in every]
        found, values = [one for _, (one,), _ in each], [one for _, _, (one,) in each]
    places = {name: one for name, one in zip(tensors, found, strict=True) if len(one)}
    count = sum(len(found) for found in places.values())
    asked = f"threshold {config.threshold:g}" if share is None else f"a density of {share:.3g}"
    if not count:
        raise ValueError(
            f"{asked} selects none of the {entries:,} entries: raise it, or give `density`; "
            "`diffusion_peft.sara_counts` shows what a threshold selects"
        )
    if count == entries:
        raise ValueError(f"{asked} selects all {entries:,} entries: lower it, or take full fine-tuning")
    return Selection(places, {n: v for n, v in zip(tensors, values, strict=True) if n in places}, threshold)


def check(tensors: Mapping[str, Tensor]) -> None:
    """Raise a ValueError unless single entries of these tensors can be selected and trained."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or hasattr(tensor, "quant_state"):
            raise ValueError(
                f"{name!r} is quantised ({tensor.dtype}): SaRA trains entries of the weights themselves. Load the base "
                "model in float32 or half precision, or take a method that leaves weights alone, such as LoRA (QLoRA)"
            )
        if tensor.is_meta:
            raise ValueError(f"{name!r} has no values (meta device): SaRA selects by magnitude; load the weights first")
        if tensor.numel() > torch.iinfo(torch.int32).max:
            raise ValueError(
                f"{name!r} has {tensor.numel():,} entries: SaRA keeps places in 32 bits, which end at "
                f"{torch.iinfo(torch.int32).max:,}; leave it out by `target_modules`"
            )


def own_threshold(tensor: Tensor, places: Int[Tensor, " count"]) -> float:
    """The threshold that selects ``places``: the least number in a trained value's dtype above the magnitudes there."""
    top = values_at(tensor, places).abs().max()
    top = top.to(torch.promote_types(top.dtype, torch.float32))
    return torch.nextafter(top, torch.full_like(top, torch.inf)).item()


def fingerprint(values: Tensor) -> dict[str, str]:
    """Digests of the selected values of a tensor, in its own dtype and as they are cast to half precision."""
    digests = {_name(dtype): _digest(values.to(dtype)) for dtype in (values.dtype, *_HALF)}
    return {"dtype": _name(values.dtype), **digests}


def same_values(tensor: Tensor, places: Int[Tensor, " count"], origin: Mapping[str, str]) -> bool:
    """Whether the tensor, or the narrower of it and the original, holds the values of a `fingerprint` at ``places``."""
    values = values_at(tensor, places)
    dtype = values.dtype if _name(values.dtype) in origin else getattr(torch, origin["dtype"])
    return _digest(values.to(dtype)) == origin[_name(dtype)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def sara_counts(
    model: nn.Module, thresholds: Sequence[float] = (2e-4, 8e-4, 2e-3), **fields: object
) -> dict[float, dict[str, int]]:
    """How many entries each threshold would train, by tensor, before anything is attached.

    Args:
        model: a model with weights; it stays as it is.
        thresholds: θ.
        **fields: of `SaraConfig`, such as ``train_norm``.
    """
    from diffusion_peft.methods.sara.config import SaraConfig

    found = {}
    for threshold in thresholds:
        config = SaraConfig(threshold=threshold, **fields)  # type: ignore[arg-type]
        tensors = {f"{n}.{t}": p for n, m in owners(config, model).items() for t, p in eligible(config, m).items()}
        check(tensors)
        found[threshold] = {name: count_below(tensor, threshold) for name, tensor in tensors.items()}
    return found
