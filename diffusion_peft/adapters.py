"""Adapters of every method on any model of diffusers, or on the denoiser of a pipeline.

diffusers' own `add_adapter` is missing from DiT, PixArt and unconditional UNets, and it loads and saves LoRA and LoKr
alone. Here a model stays what it is and carries the adapter layers itself, as with their own call; files are PEFT's.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from torch import nn

from diffusion_peft.denoiser import denoiser
from peft_kernels import hotswap, loading, saving, switching
from peft_kernels.adapter_state import check_new_name
from peft_kernels.attaching import as_before_on_failure, attach
from peft_kernels.config import MethodConfig
from peft_kernels.peft_own import fill
from peft_kernels.targets import model_name


def add_adapter(model: Any, config: PeftConfig, adapter_name: str = "default") -> nn.Module:
    """Attach a new adapter of any method; it is trained, and the only active one.

    Where ``config`` names no ``target_modules``, the method's defaults for the architecture are taken, for PEFT's own
    methods too (`peft_kernels.families`). Adapters of a half-precision model are held in float32.

    Args:
        model: a model of diffusers, a `PeftModel` of one (which gets one more adapter), or a pipeline.
        config: the method's configuration.
        adapter_name: the adapter's name.

    Returns:
        The model that carries it.

    Raises:
        TypeError: a pipeline without denoiser, or no configuration.
        ValueError: the name is taken or has a dot, or the method cannot adapt this model. The model is as it was.
    """
    carrier = denoiser(model)
    if not isinstance(config, PeftConfig):
        raise TypeError(f"expected a method's configuration, such as LoraConfig(r=8); found {config!r}")
    check_new_name(adapter_name)
    if adapter_name in getattr(carrier, "peft_config", {}):
        raise ValueError(f"the model has an adapter called {adapter_name!r} already: give another `adapter_name`")
    if not isinstance(config, MethodConfig) and hasattr(config, "target_modules"):
        config = fill(carrier, copy.copy(config))
    if config.base_model_name_or_path is None:
        config.base_model_name_or_path = model_name(carrier)
    with as_before_on_failure(carrier):
        attach(carrier, config, adapter_name, bare=True)
        switching.set_adapters(carrier, adapter_name)
        _mark(carrier)
    return carrier


def load_adapter(
    model: Any,
    path: str | Path,
    adapter_name: str = "default",
    *,
    is_trainable: bool = False,
    strict: bool = True,
    subfolder: str | None = None,
    revision: str | None = None,
    part: str | None = None,
) -> nn.Module:
    """Put a saved adapter of any method on a model of diffusers, a `PeftModel` of one, or a pipeline's denoiser.

    All of the file is checked before the model is changed, as by `peft_kernels.loading.load_adapter`, whose arguments
    these are. The new adapter is the only active one; on a `PeftModel`, where PEFT does not activate it, that stays so.

    ``path`` may also be a LoRA, LoHa or LoKr file of diffusers, kohya's programs or ComfyUI, which becomes an adapter
    of PEFT's; ``part`` (``"unet"``, ``"transformer"``) leaves out what such a file holds for text encoders.

    Returns:
        The model that carries it.

    Raises:
        TypeError: a pipeline without denoiser.
        AdapterError: the file fails a check, or the name is taken; the model is as it was.
    """
    carrier = denoiser(model)
    with as_before_on_failure(carrier):
        if Path(path).is_file():
            from diffusion_peft.formats.reading import read_foreign  # late: diffusers' loaders take long to import

            found = read_foreign(path, carrier, part)
            loading.inject_tensors(carrier, *found, str(path), adapter_name, is_trainable=is_trainable)
        else:
            loading.inject_adapter(
                carrier,
                path,
                adapter_name,
                is_trainable=is_trainable,
                strict=strict,
                subfolder=subfolder,
                revision=revision,
            )
        if not isinstance(carrier, PeftModel):
            switching.set_adapters(carrier, adapter_name)
        _mark(carrier)
    return carrier


def save_adapter(model: Any, folder: str | Path, adapter_name: str = "default") -> None:
    """Save one adapter in PEFT's format: ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
        TypeError: a pipeline without denoiser.
        AdapterError: there is no adapter of this name.
    """
    saving.save_adapter(denoiser(model), folder, adapter_name)


def hotswap_adapter(
    model: Any,
    path: str | Path,
    adapter_name: str = "default",
    *,
    subfolder: str | None = None,
    revision: str | None = None,
) -> None:
    """Write a saved adapter over an attached one, in place; see `peft_kernels.hotswap.hotswap_adapter`."""
    hotswap.hotswap_adapter(denoiser(model), path, adapter_name, subfolder=subfolder, revision=revision)


def set_adapters(model: Any, names: str | Sequence[str], weights: float | Sequence[float] = 1.0) -> None:
    """Let these adapters run, each with its weight, and no others; see `peft_kernels.switching.set_adapters`."""
    switching.set_adapters(denoiser(model), names, weights)


def disable_adapters(model: Any) -> None:
    """Let no adapter run: the model gives the base model's outputs."""
    switching.enable_adapters(denoiser(model), False)


def enable_adapters(model: Any) -> None:
    """Let the active adapters run again."""
    switching.enable_adapters(denoiser(model))


def delete_adapters(model: Any, names: str | Sequence[str]) -> None:
    """Take adapters off; see `peft_kernels.switching.delete_adapters`."""
    carrier = denoiser(model)
    switching.delete_adapters(carrier, names)
    _mark(carrier)


def _mark(carrier: nn.Module) -> None:
    """Tell diffusers' own calls, which ask this flag before they do anything."""
    if not isinstance(carrier, PeftModel):
        carrier._hf_peft_config_loaded = hasattr(carrier, "peft_config")  # type: ignore[assignment]
