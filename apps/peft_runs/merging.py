"""Merge an adapter into its base model: a plain timm model's file, whose outputs are those of the adapted model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import save_file
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from peft_kernels.adapter_files import find_adapter, read_config
from peft_kernels.adapter_tensors import read_header
from peft_kernels.loading import load_adapter
from peft_runs.base_models import full_model
from peft_runs.errors import RunError, UsageError
from peft_runs.whole_file import whole_file

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Merged:
    """What was written.

    Attributes:
        model: the name for `timm.create_model`.
        classes: its number of classes.
        ours: whether the name is registered by this project, which then has to be imported.
        difference: largest absolute difference of logits between the adapted model and the file as timm loads it.
        largest: largest absolute logit of the adapted model, to judge the difference by.
    """

    model: str
    classes: int
    ours: bool
    difference: float
    largest: float


def merge_adapter(
    adapter: Path, out: Path, name: str | None = None, checkpoint: Path | None = None, dtype: str = "float32"
) -> Merged:
    """Merge the adapter in a folder into its base model and write the plain model to ``out``.

    The difference is measured on noise pictures, after the written file was loaded by timm; only then it gets its name.

    Args:
        adapter: the adapter's folder.
        out: the safetensors file; an older one is replaced.
        name: the base model in timm; where not given, the one that the adapter names.
        checkpoint: the base model's weights; where not given, its pretrained ones.
        dtype: the type of the written tensors, a key of `DTYPES`; the merging itself is done in float32.

    Raises:
        AdapterError: the adapter is damaged or for another model.
        UsageError: no model is named, or the place to write to does not suit.
        RunError: the method cannot be merged, or not into what timm builds; the reason is told.
    """
    check_out(out)
    files = find_adapter(adapter)
    name = base_name(name, read_config(files.config).base_model_name_or_path, adapter)
    base = full_model(name, read_header(files.weights)[0], checkpoint).eval()
    keys = set(base.state_dict())
    pictures = noise(base)
    adapted = load_adapter(base, adapter)
    wanted = logits(adapted, pictures)
    model = merged_model(adapted)
    check_keys(set(model.state_dict()), keys, f"timm's {name}", "timm")
    tensors = {key: _cast(tensor, DTYPES[dtype]) for key, tensor in model.state_dict().items()}
    classes: Any = model.num_classes
    with whole_file(out) as aside:
        save_file(tensors, aside, {"format": "pt", "architecture": name, "num_classes": str(classes)})
        plain = timm.create_model(name, num_classes=classes, checkpoint_path=str(aside)).eval()
        found = logits(plain, pictures)
        if not torch.isfinite(found).all():
            raise RunError(f"the merged model's outputs hold NaN or infinity in {dtype}; nothing was written")
    ours = timm.model_entrypoint(name).__module__.startswith("vision_peft")
    return Merged(name, classes, ours, (found - wanted).abs().max().item(), wanted.abs().max().item())


def check_out(out: Path, ending: str = ".safetensors") -> None:
    """Raise where a file cannot be written.

    Raises:
        UsageError: another ending, a folder, or no folder to write into.
    """
    if out.suffix != ending:
        raise UsageError(f"--out must name a {ending} file; found {out}")
    if out.is_dir():
        raise UsageError(f"--out is a folder: {out}")
    if not out.parent.is_dir():
        raise UsageError(f"--out: there is no folder {out.parent}")


def base_name(given: str | None, recorded: str | None, adapter: Path) -> str:
    """The base model's name in timm, as given or as the adapter has it.

    Raises:
        UsageError: neither names a model of timm.
    """
    if given is not None:
        return given
    if recorded is None or not timm.is_model(recorded):
        raise UsageError(f"{adapter} names its base model {recorded!r}, which timm does not know: add --model NAME")
    return recorded


def noise(model: nn.Module) -> Tensor:
    """Two pictures of noise in the model's input size, or two such clouds, the same at each call."""
    size = resolve_model_data_config(model)["input_size"]
    size = (size[2], size[0]) if hasattr(model, "group_divider") else size
    return torch.randn(2, *size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    """The outputs in float32."""
    return model(pictures).float()


def merged_model(adapted: Any) -> nn.Module:
    """The plain model with the adapters in its weights.

    Raises:
        RunError: a method cannot be merged; the reason is told.
    """
    try:
        model = adapted.merge_and_unload(safe_merge=True)
    except (NotImplementedError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())
        method = adapted.active_peft_config.peft_type.value.lower()
        raise RunError(f"{method}: {reason}") from None
    for name, module in list(model.named_modules()):  # PEFT's LN tuning leaves the wrapper of the head behind
        if isinstance(module, AuxiliaryTrainingWrapper):
            model.set_submodule(name, module.unload_and_optionally_merge_module(True, True, None))
    return model


def check_keys(found: set[str], expected: set[str], plain: str, program: str) -> None:
    """A module that had no bias can have one after merging; the plain model that a program builds has no place for it.

    Raises:
        RunError: the keys differ.
    """
    if found != expected:
        key = min(found ^ expected)
        where = "has" if key in found else "lacks"
        raise RunError(
            f"the merged model {where} {key!r}, other than {plain}, so that {program} could not load it: "
            "keep the adapter, or train it with `exclude_modules` for this layer"
        )


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype if tensor.is_floating_point() else tensor.dtype).clone().contiguous()
