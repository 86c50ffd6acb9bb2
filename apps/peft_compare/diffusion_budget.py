"""The same budget for several methods on a denoiser, which is built on the meta device: no weights, no memory."""

import warnings
from collections.abc import Sequence
from functools import lru_cache, partial

import torch

from diffusion_peft.pipelines.opening import bare_denoiser
from peft_compare.budget import Share, share_of
from peft_compare.refusals import RefusedError
from peft_kernels.data_errors import DataError
from peft_runs.attach import attach, trainable
from peft_runs.compare_plan import make_plan, read_recipes
from peft_runs.errors import UsageError
from peft_runs.families import DIFFUSION


def solve(pipeline: str, recipe: str, names: Sequence[str], budget: int) -> list[Share]:
    """The shares of all methods in a comparison by this recipe.

    Raises:
        RefusedError: there is no such pipeline, or a method does not fit it.
    """
    return [share_of(partial(count, pipeline, recipe, name), name, budget) for name in names]


@lru_cache(maxsize=4096)
def count(pipeline: str, recipe: str, method: str, field: str | None = None, value: int | None = None) -> int:
    """Trainable parameters of a method on a pipeline's denoiser, with the recipe's other settings.

    Raises:
        RefusedError: it does not fit.
    """
    words = [] if field is None else [f"--method.{field}", str(value)]
    try:
        read = read_recipes(make_plan(DIFFUSION, recipe, [method], 1, words, 1, None), DIFFUSION)[method]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, about layers that it knows less well
            model = bare_denoiser(pipeline)
            with torch.device("meta"):
                adapted = attach(model, read.method)
    except (UsageError, DataError) as error:
        raise RefusedError(str(error)) from None
    return trainable(adapted, [])["trainable_parameters"]
