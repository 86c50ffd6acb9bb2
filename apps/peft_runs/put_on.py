"""Saved adapters put on a denoiser, any number of them, each with a weight; where one names its base."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from peft_kernels.adapter_files import find_adapter, read_config
from peft_kernels.composing import compose
from peft_kernels.loading import load_adapter
from peft_kernels.switching import set_adapters
from peft_runs.adapted import load_adapted
from peft_runs.errors import UsageError
from peft_runs.find import load_recipe
from peft_runs.run_folder import adapter_in

WHOLE = "model.safetensors"  # what a run without a method leaves


@dataclass(frozen=True)
class Weighed:
    """An adapter's folder and its weight: 1 as trained, 0 without effect."""

    folder: Path
    weight: float = 1.0

    @classmethod
    def read(cls, text: str) -> "Weighed":
        """`FOLDER` or `FOLDER:WEIGHT`; the folder of a run means the adapter in it.

        Raises:
            UsageError: there is no such folder, or the weight is no number.
        """
        place, colon, number = text.rpartition(":")
        try:
            weight = float(number) if colon else 1.0
        except ValueError:
            if not Path(text).is_dir():
                raise UsageError(f"{text!r} is neither a folder nor FOLDER:WEIGHT with a number") from None
            place, weight = text, 1.0
        folder = Path(place if colon else text).expanduser()
        if not folder.is_dir():
            raise UsageError(f"there is no adapter's folder {folder}")
        return cls(adapter_in(folder), weight)

    @property
    def whole(self) -> bool:
        """Whether it is a whole trained model instead of an adapter."""
        return (self.folder / WHOLE).is_file()


def base_of(adapter: Weighed) -> str:
    """The pipeline that an adapter says it belongs to.

    Raises:
        UsageError: it does not say.
        AdapterError: there is no adapter.
    """
    recipe = adapter.folder.parent / "recipe.yaml"
    if adapter.whole:
        found = (load_recipe(recipe).get("model") or {}).get("pipeline") if recipe.is_file() else None
    else:
        found = read_config(find_adapter(adapter.folder).config).base_model_name_or_path
    if not isinstance(found, str) or not found:
        raise UsageError(f"{adapter.folder} does not name its base: add --pipeline NAME_OR_FOLDER")
    return found


def put_on(model: nn.Module, adapters: Sequence[Weighed]) -> Any:
    """The model with the adapters, all active, in evaluation mode.

    Raises:
        AdapterError, RunError: an adapter is damaged or for another model; the model is as it was.
        UsageError: they cannot be put together, or a method knows no weights.
    """
    if any(adapter.whole for adapter in adapters):
        if len(adapters) > 1 or adapters[0].weight != 1:
            raise UsageError(f"{adapters[0].folder} holds a whole model: it goes without weight and without others")
        return load_adapted(model, adapters[0].folder).eval()
    names = {f"adapter_{number}": adapter for number, adapter in enumerate(adapters)}
    kinds = {type(read_config(find_adapter(adapter.folder).config)) for adapter in adapters}
    adapted: Any = model
    try:
        if len(kinds) > 1:
            adapted = compose(model, {name: adapter.folder for name, adapter in names.items()}, is_trainable=False)
        else:
            for name, adapter in names.items():
                adapted = load_adapter(adapted, adapter.folder, name)
        set_adapters(adapted, list(names), [adapter.weight for adapter in adapters])
    except ValueError as error:
        if hasattr(error, "exit_code"):
            raise
        raise UsageError(f"these adapters cannot be put on together: {error}") from None
    return adapted.eval()
