"""Hot swap: write a saved adapter's tensors over those of an attached one, in place.

The parameters stay the same objects of the same shapes, so that a compiled model runs on without compiling again and
an optimiser keeps its references. PEFT's own `hotswap_adapter` does it for LoRA alone, also with other ranks.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from peft_kernels.adapter_files import AdapterError, find_adapter, read_config
from peft_kernels.adapter_fit import check_fit
from peft_kernels.adapter_state import check_name, write_adapter_state
from peft_kernels.adapter_tensors import read_header, read_tensors
from peft_kernels.loading import expected_of

# What may differ: notes about the file, and the ways of naming targets (the keys themselves are compared).
_NOTES = {field.name for field in dataclasses.fields(PeftConfig)} - {"peft_type"}
_NAMES = {"target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern"}


def hotswap_adapter(
    model: nn.Module,
    path: str | Path,
    adapter_name: str = "default",
    *,
    subfolder: str | None = None,
    revision: str | None = None,
) -> None:
    """Overwrite the adapter ``adapter_name`` of ``model`` with the saved one at ``path``, its head included.

    Both must be of the same method with the same settings, and every tensor of the same shape. Training flags, scales
    and the active adapters stay as they are.

    Args:
        model: a `PeftModel`, or a model that carries adapter layers itself, compiled with `torch.compile` or not.
        path: the new adapter's folder, or ``owner/name`` on the Hugging Face hub.
        adapter_name: the adapter that is overwritten.
        subfolder: the adapter's folder within ``path``.
        revision: branch, tag or commit on the hub.

    Raises:
        AdapterError: there is no such adapter on the model, it is merged, the settings differ (which, found and
            expected), or the file fails a check of `load_adapter`; the model is unchanged.
    """
    adapted: Any = getattr(model, "_orig_mod", model)
    check_name(adapted, adapter_name)
    merged = [layer for layer in adapted.modules() if isinstance(layer, BaseTunerLayer) and layer.merged]
    if any(adapter_name in layer.merged_adapters for layer in merged):
        raise AdapterError(f"adapter {adapter_name!r} is merged into the model: unmerge it first")
    files = find_adapter(path, subfolder, revision)
    config = read_config(files.config)
    _check_settings(str(files.config), adapted.peft_config[adapter_name], config)
    expected = expected_of(adapted, adapter_name)
    infos, _ = read_header(files.weights)
    check_fit(expected, infos, str(files.weights), adapted, config)
    tensors = read_tensors(files.weights, expected.limits, expected.ascending)
    write_adapter_state(adapted, tensors, adapter_name)


def _check_settings(source: str, present: PeftConfig, new: PeftConfig) -> None:
    before, after = present.to_dict(), new.to_dict()
    for key in sorted({*before, *after} - _NOTES - _NAMES, key=lambda key: (key != "peft_type", key)):
        old, now = (getattr(value, "value", value) for value in (before.get(key), after.get(key)))
        if old != now:
            raise AdapterError(
                f"{source}: {key} is {now!r}, expected {old!r} as the attached adapter has it: "
                "remove that one and use `load_adapter`"
            )
