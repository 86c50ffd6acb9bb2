"""The same budget for several methods: the setting of each that brings its trainable parameters nearest to it.

The head is left out, since every method trains it. Models are built on the meta device: no weights, no memory.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import timm
import torch
from torch import nn

import vision_peft  # noqa: F401 (registers its models and methods)
from peft_compare.refusals import RefusedError
from peft_kernels.budget import match_budget
from peft_kernels.config import nearest
from peft_kernels.registry import Method, methods
from peft_runs.attach import attach, trainable
from peft_runs.base_models import classifiers
from peft_runs.errors import UsageError
from peft_runs.recipe import MethodSpec

# The fields that say how large an adapter is, the first that a method has; the last two count parameters themselves.
SIZES = ("r", "num_tokens", "budget", "num_trainable")
EXACT = ("budget", "num_trainable")
LARGEST = 64


@dataclass(frozen=True)
class Share:
    """What a method gets: the value of its size and the parameters this makes, the head left out; no field where the
    method has one size only."""

    method: str
    field: str | None
    value: int | None
    parameters: int


def size_field(method: str) -> str | None:
    """The name of the setting that says how large this method's adapter is."""
    known = {field.name for field in methods()[method].fields()}
    return next((name for name in SIZES if name in known), None)


def solve(model: str, classes: int, names: Sequence[str], budget: int) -> list[Share]:
    """The shares of all methods.

    Raises:
        RefusedError: there is no such model, or a method does not fit it.
    """
    if not timm.is_model(model):
        raise RefusedError(f"there is no model {model!r}{nearest(model, timm.list_models())}")
    return [_share(model, classes, methods()[name], budget) for name in names]


def _share(model: str, classes: int, method: Method, budget: int) -> Share:
    field = size_field(method.name)
    if field in EXACT:
        return Share(method.name, field, budget, budget)
    if field is None:
        return Share(method.name, None, None, count(model, classes, method.name))

    # SNELL's ranks come in parts of equal size.
    step = next((int(known.default) for known in method.fields() if known.name == "num_parts"), 1)

    def at(steps: int) -> int:
        return count(model, classes, method.name, field, step * steps)

    steps = match_budget(at, budget, 1, LARGEST // step)
    return Share(method.name, field, step * steps, at(steps))


@lru_cache(maxsize=4096)
def count(model: str, classes: int, method: str, field: str | None = None, value: int | None = None) -> int:
    """Trainable parameters of a method on a model, the head left out.

    Raises:
        RefusedError: it does not fit.
    """
    fields = {} if field is None else {field: value}
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, about layers that it knows less well
            base: nn.Module = timm.create_model(model, num_classes=classes)
            heads = list(classifiers(base))
            adapted = attach(base, MethodSpec(method, fields))
    except UsageError as error:
        raise RefusedError(str(error)) from None
    return trainable(adapted, heads)["trainable_parameters_without_head"]
