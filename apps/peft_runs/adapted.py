"""A trained adapter, or a whole trained model, put back on the task's model."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from peft_kernels.loading import load_adapter
from peft_runs.errors import RunError


def load_adapted(base: nn.Module, folder: Path) -> nn.Module:
    """The model that a run saved in `folder` (`RUN/adapter`).

    Raises:
        RunError, AdapterError: the file is missing, damaged, or for another model; the message names key, found and
            expected shape.
    """
    if not folder.is_dir():
        raise RunError(f"there is no adapter in {folder}")
    if not (folder / "model.safetensors").is_file():
        return load_adapter(base, folder)
    tensors = read_safetensors(folder / "model.safetensors")
    expected = base.state_dict()
    for name in sorted(set(tensors) ^ set(expected)):
        where = "the file but not in the model" if name in tensors else "the model but not in the file"
        raise RunError(f"{folder / 'model.safetensors'} is for another model: {name!r} is in {where}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise RunError(
                f"{folder / 'model.safetensors'} is for another model: {name!r} has shape {tuple(tensor.shape)}, "
                f"expected {tuple(expected[name].shape)}"
            )
    base.load_state_dict(tensors)
    return base


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file.

    Raises:
        RunError: it is missing, cut off or altered.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} is not a whole safetensors file: {error}") from None
