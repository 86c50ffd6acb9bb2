"""The same budget for several methods on a denoiser, which is built on the meta device: no weights, no memory."""

import warnings
from collections.abc import Sequence
from functools import lru_cache, partial

import torch

from diffusion_peft.pipelines.opening import bare_denoiser
from peft_compare.budget import Share, share
from peft_compare.refusals import RefusedError
from peft_kernels.data_errors import DataError
from peft_runs.attach import attach, trainable
from peft_runs.errors import UsageError
from peft_runs.recipe import MethodSpec


def solve(pipeline: str, names: Sequence[str], budget: int) -> list[Share]:
    """The shares of all methods.

    Raises:
        RefusedError: there is no such pipeline, or a method does not fit it.
    """
    return [share(partial(count, pipeline, name), name, budget) for name in names]


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
