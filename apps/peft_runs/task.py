"""What a family hands to a run: a task. It owns model, data, loss and evaluation, and knows nothing of commands."""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn
from torch.utils.data import Dataset

Batch = dict[str, Tensor]
Told = Callable[[str, int, int], None]


class Task(Protocol):
    """One kind of work for one family of models.

    `model_spec` and `data_spec` are frozen dataclasses of plain fields: the sections `model` and `data` of a recipe.
    Datasets are asked for by `(epoch, index)`, so that what is random in a sample never depends on who prepares it.

    A task may also have
        use_folder(folder)        hears of the run's folder before anything is built, to leave files there
        attached(model)           the method is on the model and both datasets are ready
        after_step(model, steps)  `steps` optimiser steps are done (averages of weights, kept as buffers of the model,
                                  are part of every checkpoint)
        kept(model)               a context within which the model holds what is to be saved (such averages)
        draw(model)               a picture that shows how far the training is, or None
        leave(folder)             writes what belongs to the saved adapter beside it
        of_method                 settings (`model.loss`) that belong to a method: in a comparison each has its own
        usage(method), about()    how the result is used, in Python, and short facts: what the run's page and card tell
                                  beside its figures; `prompts()` names the rows of `draw`'s picture
    """

    model_spec: ClassVar[type]
    data_spec: ClassVar[type]
    metric: ClassVar[str]

    def __init__(self, model: Any, data: Any, seed: int, told: Told | None = None) -> None:
        """`model` and `data` are the recipe's sections; `told(what, done, of)` hears of long work."""
        ...

    def build_model(self) -> nn.Module: ...

    def training_data(self, model: nn.Module) -> Dataset: ...

    def test_data(self, model: nn.Module) -> Dataset: ...

    def loss(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        """The batch's mean loss, float32 `[]`."""
        ...

    def evaluate(self, model: Callable[..., Any], batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Sums over the batches; they are added up over processes before `figures` sees them."""
        ...

    def figures(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Named figures from the sums, `metric` among them (more is better)."""
        ...

    def head(self, model: nn.Module) -> list[str]:
        """Names of the modules that any adaptation trains anew (the classifier)."""
        ...
