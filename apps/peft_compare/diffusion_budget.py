"""The same budget for several methods on a denoiser, which is built on the meta device: no weights, no memory."""

import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from diffusion_peft.pipelines.opening import bare_denoiser
from peft_compare.budget import EXACT, LARGEST, Share, size_field
from peft_compare.refusals import RefusedError
from peft_kernels.budget import match_budget
from peft_kernels.data_errors import DataError
from peft_kernels.registry import methods
from peft_runs.attach import attach, trainable
from peft_runs.errors import UsageError
from peft_runs.recipe import MethodSpec


def solve(pipeline: str, names: Sequence[str], budget: int) -> list[Share]:
    """The shares of all methods.

    Raises:
        RefusedError: there is no such pipeline, or a method does not fit it.
    """
    return [_share(pipeline, name, budget) for name in names]


def _share(pipeline: str, method: str, budget: int) -> Share:
    field = size_field(method)
    if field in EXACT:
        return Share(method, field, budget, budget)
    if field is None:
        return Share(method, None, None, count(pipeline, method))
    # SNELL's ranks come in parts of equal size.
    parts: Any = next((known.default for known in methods()[method].fields() if known.name == "num_parts"), 1)
    step = int(parts)

    def at(steps: int) -> int:
        return count(pipeline, method, field, step * steps)

    steps = match_budget(at, budget, 1, LARGEST // step)
    return Share(method, field, step * steps, at(steps))


@lru_cache(maxsize=4096)
def count(pipeline: str, method: str, field: str | None = None, value: int | None = None) -> int:
    """Trainable parameters of a method on a pipeline's denoiser.

    Raises:
        RefusedError: it does not fit.
    """
    fields = {} if field is None else {field: value}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, about layers that it knows less well
            model = bare_denoiser(pipeline)
            with torch.device("meta"):
                adapted = attach(model, MethodSpec(method, fields))
    except (UsageError, DataError) as error:
        raise RefusedError(str(error)) from None
    return trainable(adapted, [])["trainable_parameters"]
