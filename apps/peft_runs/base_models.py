"""The plain model that an adapter belongs to, built by name: without memory to compare, with weights to merge."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.models import load_state_dict
from torch import nn

import vision_peft  # noqa: F401 (registers its models)
from diffusion_peft.embedded import NAMES as PIPELINES
from peft_kernels.adapter_files import refuse_pickle
from peft_kernels.adapter_formats import PEFT_ROOT
from peft_kernels.adapter_tensors import TensorInfo
from peft_kernels.data_errors import DataError
from peft_runs.errors import RunError, UsageError, unknown


def is_pipeline(name: str) -> bool:
    """Whether a base is a pipeline that can be looked into without a network: an embedded one, or a folder."""
    from diffusion_peft.pipelines.opening import INDEX, place_of  # late: diffusers takes seconds to import

    try:
        return (Path(place_of(name)) / INDEX).is_file()
    except DataError:
        return False


def bare_model(name: str, infos: Mapping[str, TensorInfo]) -> nn.Module:
    """The model called ``name`` on the meta device: timm's, with as many classes as the head in the adapter's file has,
    or the UNet or transformer of a pipeline (an embedded one, a folder, or a name of the hub, ``owner/name``).

    Raises:
        UsageError: there is no such model; the nearest is told.
        DataError: the pipeline cannot be had, or has neither UNet nor transformer.
    """
    if not timm.is_model(name):
        if "/" in name or is_pipeline(name):
            from diffusion_peft.pipelines.opening import bare_denoiser

            return bare_denoiser(name)
        raise unknown("model", name, [*timm.list_models(), *PIPELINES])
    with torch.device("meta"):
        model = timm.create_model(name)
        classes = classes_in(infos, model, PEFT_ROOT)
        return model if classes is None else timm.create_model(name, num_classes=classes)


def classes_in(tensors: Mapping[str, Any], model: nn.Module, root: str = "") -> int | None:
    """The number of classes of the head among the tensors of a file; ``None`` where it holds no head."""
    # In full fine-tuning the head is an adapted module like the others, otherwise one that is saved whole.
    heads = "|".join(re.escape(head) for head in classifiers(model))
    weight = re.compile(rf"{re.escape(root)}({heads})(\.\w+_adapter)?\.weight")
    return next((tensor.shape[0] for key, tensor in tensors.items() if weight.fullmatch(key)), None)


def classifiers(model: nn.Module) -> tuple[str, ...]:
    """The classifier's modules by name; also where the model was made without classes and they are placeholders."""
    cfg: Any = model.pretrained_cfg
    names = cfg.get("classifier") if isinstance(cfg, dict) else getattr(cfg, "classifier", None)
    return (names,) if isinstance(names, str) else tuple(names or ())


def full_model(name: str, infos: Mapping[str, TensorInfo], checkpoint: Path | None) -> nn.Module:
    """The model called ``name`` with its pretrained weights, or those in ``checkpoint``, for the adapter's classes.

    Raises:
        UsageError: timm has no such model, or there is no such file.
        RunError: the weights cannot be had, or are for another model.
        AdapterError: the checkpoint is a pickle.
    """
    bare = bare_model(name, infos)
    classes = classes_in(infos, bare, PEFT_ROOT)
    if checkpoint is None:
        try:
            return timm.create_model(name, pretrained=True, num_classes=classes)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise RunError(
                f"the pretrained weights of {name} cannot be loaded ({reason}): give the base model's own file "
                "with --checkpoint"
            ) from None
    if not checkpoint.is_file():
        raise UsageError(f"there is no file {checkpoint} (--checkpoint)")
    refuse_pickle(checkpoint)
    try:
        tensors = load_state_dict(str(checkpoint), use_ema=False)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{checkpoint} is not a whole safetensors file: {error}") from None
    head_from_adapter = classes is not None
    model = timm.create_model(name, num_classes=classes if head_from_adapter else classes_in(tensors, bare))
    heads = tuple(f"{head}." for head in classifiers(model)) if head_from_adapter else ()
    _fill(model, tensors, f"{checkpoint} is not for {name}", heads)
    return model


def _fill(model: nn.Module, tensors: dict[str, torch.Tensor], wrong: str, heads: tuple[str, ...]) -> None:
    """Write a checkpoint's tensors; those of ``heads`` may be missing or of other classes: the adapter brings them."""
    expected = model.state_dict()
    for key in sorted({*expected, *tensors}):
        if key in tensors and key in expected and tensors[key].shape == expected[key].shape:
            continue
        if heads and key.startswith(heads):
            tensors.pop(key, None)
        elif key not in tensors:
            raise RunError(f"{wrong}: {key!r} is missing")
        elif key not in expected:
            raise RunError(f"{wrong}: it has {key!r}, which the model has not")
        else:
            found, wanted = tuple(tensors[key].shape), tuple(expected[key].shape)
            raise RunError(f"{wrong}: {key!r} has shape {found}, expected {wanted}")
    model.load_state_dict(tensors, strict=False)
