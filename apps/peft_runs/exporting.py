"""Write an adapter in another program's format where the form is exact, and refuse with the reason where it is not."""

from pathlib import Path

from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file

from peft_kernels.adapter_files import find_adapter, read_config
from peft_kernels.adapter_fit import check_fit
from peft_kernels.adapter_tensors import read_header, read_tensors
from peft_kernels.loading import expected_tensors
from peft_runs.base_models import bare_model
from peft_runs.durable import whole_folder
from peft_runs.errors import RunError, UsageError, unknown
from peft_runs.merging import Merged, base_name, merge_adapter
from peft_runs.peft_form import peft_form

FORMATS = {
    "peft": "a folder that PEFT reads without this project",
    "diffusers": "diffusion models only",
    "kohya": "diffusion models only",
    "comfy": "diffusion models only",
    "merged": "a plain timm model's file, as `merge` writes it",
}


def export_adapter(
    adapter: Path, to: str, out: Path, name: str | None = None, checkpoint: Path | None = None
) -> Merged | None:
    """Write the adapter in ``adapter`` to ``out`` in the format ``to``; what was merged, if it was.

    Args:
        adapter: the adapter's folder.
        to: a key of `FORMATS`.
        out: a new folder (``peft``) or a safetensors file (``merged``).
        name: the base model in timm; where not given, the one that the adapter names.
        checkpoint: the base model's weights (``merged``); where not given, its pretrained ones.

    Raises:
        AdapterError: the adapter is damaged or for another model.
        UsageError: an unknown format or model, or a place to write to that does not suit.
        RunError: there is no exact form; the reason is told.
    """
    if to not in FORMATS:
        raise unknown("format", to, FORMATS)
    if to == "merged":
        return merge_adapter(adapter, out, name, checkpoint)
    if to != "peft":
        raise RunError(
            f"the format {to} holds adapters of diffusion models, and {adapter} is one of a vision model: "
            "use --to merged for a plain model, or --to peft"
        )
    if out.exists():
        raise UsageError(f"{out} exists already: choose another --out")
    files = find_adapter(adapter)
    config = read_config(files.config)
    infos, _ = read_header(files.weights)
    name = base_name(name, config.base_model_name_or_path, adapter)
    model = bare_model(name, infos)
    expected = expected_tensors(model, config, str(files.config))
    check_fit(expected, infos, str(files.weights), model, config)
    try:
        form, tensors = peft_form(config, read_tensors(files.weights, expected.limits), model)
    except RunError as error:
        raise RunError(f"{error}; --to merged writes a plain model where the method can be merged") from None
    with whole_folder(out) as aside:
        form.inference_mode = True
        form.save_pretrained(str(aside))
        save_file(
            {key: tensor.contiguous() for key, tensor in tensors.items()},
            aside / SAFETENSORS_WEIGHTS_NAME,
            {"format": "pt"},
        )
        written, _ = read_header(aside / SAFETENSORS_WEIGHTS_NAME)
        check_fit(expected_tensors(model, form, str(out)), written, str(out), model, form)
    return None
