"""Save one adapter in PEFT's format, from a `PeftModel` or from a model that carries adapter layers itself."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor, nn

from peft_kernels import targets
from peft_kernels.adapter_state import adapter_state, check_name


def save_adapter(model: nn.Module, folder: str | Path, adapter_name: str = "default") -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` of one adapter into ``folder``.

    `PeftModel.from_pretrained` and `load_adapter` read them. Both are written aside and renamed when they are whole;
    other files in the folder stay.

    Args:
        model: a `PeftModel`, or a model that adapters were injected into.
        folder: where to; made where it is not there.
        adapter_name: which adapter.

    Raises:
        AdapterError: the model has no such adapter.
    """
    check_name(model, adapter_name)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    configs: Any = model.peft_config
    config = copy.copy(configs[adapter_name])
    config.inference_mode = True
    config.base_model_name_or_path = config.base_model_name_or_path or targets.model_name(base)
    state = _by_themselves(adapter_state(model, adapter_name))
    folder = Path(folder)
    aside = folder / ".writing-adapter"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        about = {"base_model_class": type(base).__name__, "parent_library": type(base).__module__}
        config.save_pretrained(str(aside), auto_mapping_dict=about)
        save_file(state, aside / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        for name in (SAFETENSORS_WEIGHTS_NAME, CONFIG_NAME):
            (aside / name).replace(folder / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _by_themselves(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors, none of which shares its memory with another, as safetensors asks for."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in state.items():
        tensor = tensor.detach().contiguous()
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return apart
