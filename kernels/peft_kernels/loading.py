"""Load a saved adapter, checked in full before anything of the model is changed.

PEFT's own loading is permissive: it passes over extra keys in silence, warns about missing ones, takes NaN, and leaves
the model wrapped when a shape does not fit. Here each of these raises, and the model stays as it was. Which keys and
shapes a file must have is found by attaching its configuration to a copy of the model without memory (meta device).
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, ShiraConfig
from peft.tuners.tuners_utils import BaseTunerLayer, cast_adapter_dtype
from torch import Tensor, nn

from peft_kernels.adapter_files import AdapterError, AdapterFiles, find_adapter, read_config
from peft_kernels.adapter_fit import Expected, check_fit, check_wrapper, describe, trained_on
from peft_kernels.adapter_state import adapter_state, check_new_name, name_in_file, write_adapter_state
from peft_kernels.adapter_tensors import described, group_of, read_header, read_tensors
from peft_kernels.attaching import as_before_on_failure, attach
from peft_kernels.entries import Entries
from peft_kernels.layer import AdapterLayer
from peft_kernels.shira_places import random_places


def load_adapter(
    model: nn.Module,
    path: str | Path,
    adapter_name: str = "default",
    *,
    is_trainable: bool = False,
    strict: bool = True,
    subfolder: str | None = None,
    revision: str | None = None,
    autocast_adapter_dtype: bool = True,
) -> PeftModel:
    """Put a saved adapter, with the head that was trained with it, on ``model``.

    Reads adapters of every registered method and of PEFT's own, safetensors only. The base model is wrapped in place,
    as PEFT does; on any failure it is as it was before.

    Args:
        model: the base model, or a `PeftModel`, which gets one more adapter (inactive, as with PEFT).
        path: the adapter's folder, or ``owner/name`` on the Hugging Face hub.
        adapter_name: the name it gets on this model.
        is_trainable: whether it is trained further; otherwise it is frozen and the model put into evaluation mode.
        strict: whether every key must match. If not, missing tensors keep their start and unexpected ones are left
            out, with one warning; shapes, types and values are checked all the same.
        subfolder: the adapter's folder within ``path``.
        revision: branch, tag or commit on the hub.
        autocast_adapter_dtype: whether half-precision adapters are held in float32, as PEFT does.

    Raises:
        AdapterError: there is no adapter at ``path``; it is a pickle, damaged or unsafe; its configuration has an
            unknown method, field or value; it is for another model (which key, shape found and expected, share of keys
            that match); it holds NaN, infinity or an index out of range; or the name is taken.
    """
    files = find_adapter(path, subfolder, revision)
    adapted: Any = _load(model, files, adapter_name, is_trainable, strict, autocast_adapter_dtype, bare=False)
    return adapted


def inject_adapter(
    model: nn.Module,
    path: str | Path,
    adapter_name: str = "default",
    *,
    is_trainable: bool = False,
    strict: bool = True,
    subfolder: str | None = None,
    revision: str | None = None,
    autocast_adapter_dtype: bool = True,
) -> None:
    """`load_adapter` into a model that stays what it is and carries the adapter layers itself, as diffusers has it.

    The new adapter is the only active one.
    """
    files = find_adapter(path, subfolder, revision)
    _load(model, files, adapter_name, is_trainable, strict, autocast_adapter_dtype, bare=True)


def inject_tensors(
    model: nn.Module,
    config: PeftConfig,
    tensors: dict[str, Tensor],
    source: str,
    adapter_name: str = "default",
    *,
    is_trainable: bool = False,
) -> None:
    """`inject_adapter` of what another program's file ``source`` holds, as PEFT has it; its fit is checked first.

    Raises:
        AdapterError: it is for another model, or the name is taken.
    """
    _refuse_name(model, adapter_name)
    config.inference_mode = not is_trainable
    expected = expected_tensors(model, config, source, adapter_name, bare=True)
    check_fit(expected, described(tensors), source, model, config)
    _put(model, config, tensors, expected, adapter_name, is_trainable, autocast=True, bare=True)


def _refuse_name(model: nn.Module, name: str) -> None:
    check_new_name(name)
    if name in getattr(model, "peft_config", {}):
        raise AdapterError(
            f"the model has an adapter called {name!r} already: give another `adapter_name`, "
            "or exchange its tensors with `hotswap_adapter`"
        )


def _load(
    model: nn.Module, files: AdapterFiles, name: str, is_trainable: bool, strict: bool, autocast: bool, bare: bool
) -> nn.Module:
    _refuse_name(model, name)
    config = read_config(files.config)
    config.inference_mode = not is_trainable
    if isinstance(config, ShiraConfig):
        config.mask_fn = random_places  # drawn anew; the file tells the true ones
    infos, _ = read_header(files.weights)
    check_wrapper(infos, str(files.weights), model)
    expected = expected_tensors(model, config, str(files.config), name, bare)
    check_fit(expected, infos, str(files.weights), model, config, strict)
    tensors = read_tensors(files.weights, expected.limits, expected.ascending)
    return _put(model, config, tensors, expected, name, is_trainable, autocast, bare)


def _put(
    model: nn.Module,
    config: PeftConfig,
    tensors: dict[str, Tensor],
    expected: Expected,
    name: str,
    is_trainable: bool,
    autocast: bool,
    bare: bool,
) -> nn.Module:
    state = {key: tensor for key, tensor in tensors.items() if key in expected.tensors}
    whole = len(state) == len(expected.tensors)
    unborn = whole and _start_is_unseen(config)
    with as_before_on_failure(model), warnings.catch_warnings():
        # PEFT on norms of classes that it cannot tell the sizes of; it does not need them.
        warnings.filterwarnings("ignore", message="Unsupported layer type")
        adapted = attach(model, config, name, bare, autocast, low_cpu_mem_usage=unborn)
        state = state if whole else {**adapter_state(adapted, name), **state}
        write_adapter_state(adapted, state, name, in_place=not unborn)
        if unborn:
            cast_adapter_dtype(adapted, name, autocast)
            write_adapter_state(adapted, state, name)  # PEFT took them through the type of the base model
    if not is_trainable:
        adapted.eval()
    elif adapted is model and isinstance(model, PeftModel):
        model.set_requires_grad(name)
    return adapted


def _start_is_unseen(config: PeftConfig) -> bool:
    """Whether a file holds all that the method starts with, which then need not be computed: DoRA norms every row."""
    lora = isinstance(config, LoraConfig) and isinstance(config.init_lora_weights, bool)
    return lora and config.bias == "none" and not config.modules_to_save  # type: ignore[attr-defined]


# --- what a file must hold -----------------------------------------------------------------------------------------
def expected_tensors(
    model: nn.Module, config: PeftConfig, source: str, adapter_name: str = "default", bare: bool = False
) -> Expected:
    """What a file must hold for ``config`` on ``model``, found on a copy of the model without memory.

    ``bare`` says that the model carries adapter layers itself, if any.

    Raises:
        AdapterError: the configuration cannot be put on this model; ``source`` is named as where it comes from.
    """
    config = copy.deepcopy(config)
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # type: ignore[attr-defined]  # starts that compute with the weights need them
    if isinstance(config, ShiraConfig):
        config.mask_fn = random_places
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            try:
                adapted = attach(on_meta(model), config, adapter_name, bare, low_cpu_mem_usage=True)
            except (NotImplementedError, RuntimeError) as error:
                if "meta" not in str(error):
                    raise
                # A few of PEFT's methods compute with the weights' values: they need a copy with memory.
                adapted = attach(copy.deepcopy(model), config, adapter_name, bare)
    except Exception as error:
        # Whatever a method makes of values that do not suit it, it is the file's fault: it is data from outside.
        reason = " ".join(str(error.args[0] if error.args else error).split())
        origin = trained_on(config, model).removesuffix("; ")
        raise AdapterError(f"{source} does not fit {describe(model)}: {reason}{origin and f' ({origin})'}") from None
    return expected_of(adapted, adapter_name)


def expected_of(adapted: nn.Module, adapter_name: str) -> Expected:
    """What a file must hold for an adapter that is attached already."""
    tensors = adapter_state(adapted, adapter_name)
    modules = {name_in_file(adapted, name): module for name, module in adapted.named_modules()}
    layers = {f"{name}.": layer for name, layer in modules.items() if isinstance(layer, BaseTunerLayer)}
    limits = {}
    for key in (key for key, tensor in tensors.items() if group_of(tensor) == "an integer type"):
        owner = layers.get(max((name for name in layers if key.startswith(name)), key=len, default=""))
        # This project's index buffers count entries of the layer's weight; of PEFT's own it is known that none is < 0.
        weight = getattr(owner.get_base_layer(), "weight", None) if isinstance(owner, AdapterLayer) else None
        limits[key] = weight.numel() if isinstance(weight, Tensor) else torch.iinfo(tensors[key].dtype).max
    places = {
        f"{name}.index".replace(f".{adapter_name}.", ".", 1): module.index_limit
        for name, module in modules.items()
        if isinstance(module, Entries)
    }
    return Expected(tensors, {**limits, **places}, frozenset(places))


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose tensors have shape and type but no memory."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        wrapped = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
        memo[id(tensor)] = wrapped
    return copy.deepcopy(model, memo)
