"""The tensors of an attached adapter, under the names that they have in PEFT's files.

A model that carries adapter layers itself, as diffusers has it, names them without the prefix of a `PeftModel`; in a
file they have it, so that either can read what the other wrote.
"""

from __future__ import annotations

from collections.abc import Mapping

from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from peft_kernels.adapter_files import AdapterError
from peft_kernels.config import nearest

PREFIX = "base_model.model."


def check_name(model: nn.Module, adapter_name: str) -> None:
    """Raise unless the model has an adapter of this name.

    Raises:
        AdapterError: with the nearest name, or those there are.
    """
    known = getattr(model, "peft_config", None)
    if not known:
        raise AdapterError(f"{type(model).__name__} carries no adapters: use `load_adapter`, or attach a new one")
    if adapter_name not in known:
        hint = nearest(adapter_name, known)
        raise AdapterError(f"the model has no adapter called {adapter_name!r}{hint}; it has {', '.join(known)}")


def check_new_name(adapter_name: str) -> None:
    """Raise an AdapterError unless an adapter can be called so: its name becomes that of a module."""
    if not isinstance(adapter_name, str) or not adapter_name or "." in adapter_name:
        raise AdapterError(f"an adapter's name must be a text without dots; found {adapter_name!r}")


def name_in_file(model: nn.Module, name: str) -> str:
    """The name in a file of what is called ``name`` in ``model``, a `PeftModel` or not."""
    return name if isinstance(model, PeftModel) else f"{PREFIX}{name}"


def adapter_state(model: nn.Module, adapter_name: str) -> dict[str, Tensor]:
    """The tensors of one adapter by their names in a file."""
    # Embeddings would have PEFT ask the hub for the base model's configuration; only language models have them saved.
    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    return {name_in_file(model, name): tensor for name, tensor in state.items()}


def write_adapter_state(
    model: nn.Module, state: Mapping[str, Tensor], adapter_name: str, in_place: bool = True
) -> None:
    """Write tensors, by their names in a file, into an adapter of the model, or (not ``in_place``) put them there."""
    start = "" if isinstance(model, PeftModel) else PREFIX
    named = {name.removeprefix(start): tensor for name, tensor in state.items()}
    set_peft_model_state_dict(model, named, adapter_name=adapter_name, low_cpu_mem_usage=not in_place)
