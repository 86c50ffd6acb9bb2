"""Write an adapter of a pipeline's UNet or transformer in another program's format, where that is exact."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from peft import PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor, nn

from diffusion_peft.formats.low_rank import NoFormError
from diffusion_peft.formats.reading import read_foreign
from diffusion_peft.formats.writing import written
from peft_kernels.adapter_files import find_adapter, read_config
from peft_kernels.adapter_fit import check_fit
from peft_kernels.adapter_tensors import described, read_header, read_tensors
from peft_kernels.loading import expected_tensors
from peft_runs.base_models import bare_model
from peft_runs.durable import whole_folder
from peft_runs.errors import RunError, UsageError
from peft_runs.merging import check_out
from peft_runs.merging_pipeline import MergedPipeline, merge_pipeline
from peft_runs.peft_form import REASONS, kind_of, peft_form
from peft_runs.put_on import Weighed
from peft_runs.whole_file import whole_file

FORMATS = {
    "peft": "a folder that PEFT reads without this project",
    "diffusers": "a file that diffusers' `load_lora_weights` reads",
    "kohya": "a file as sd-scripts and LyCORIS write it",
    "comfy": "a file that ComfyUI reads",
    "merged": "a plain pipeline's folder, as `merge` writes it",
}


def export_denoiser(
    adapter: Path, to: str, out: Path, name: str | None = None, part: str | None = None
) -> MergedPipeline | None:
    """Write the adapter to ``out`` in the format ``to``; what was merged, if it was.

    Args:
        adapter: the adapter's folder, or a LoRA, LoHa or LoKr file of another program.
        to: a key of `FORMATS`.
        out: a new folder (``peft``, ``merged``) or a safetensors file.
        name: the base pipeline; where not given, the one that the adapter names.
        part: of a file that is for text encoders as well, the part to take: ``"unet"`` or ``"transformer"``.

    Raises:
        AdapterError, DataError: the adapter or the pipeline cannot be had, or do not belong together.
        UsageError: no base is named, or a place to write to does not suit.
        RunError: there is no exact form; the reason is told.
    """
    folder = to in ("peft", "merged")
    if folder and out.exists():
        raise UsageError(f"{out} exists already: choose another --out")
    if not folder:
        check_out(out)
    if to == "merged" and adapter.is_dir():
        return merge_pipeline([Weighed(adapter)], out, name)
    config, tensors, model = _read(adapter, name, part)
    if to == "merged":
        with _as_folder(config, tensors) as place:
            return merge_pipeline([Weighed(place)], out, config.base_model_name_or_path)
    try:
        if to == "peft":
            config, tensors = peft_form(config, tensors, model)
            with whole_folder(out) as aside:
                _save(config, tensors, aside)
            return None
        if kind_of(config) not in REASONS:  # of what has none in PEFT the format tells better why
            config, tensors = peft_form(config, tensors, model)
        made, header = written(config, tensors, model, to)
    except (RunError, NoFormError) as error:
        raise RunError(f"{error}; --to merged writes a plain pipeline where the method can be merged") from None
    with whole_file(out) as aside:
        save_file(made, aside, header)
    return None


def _read(adapter: Path, name: str | None, part: str | None) -> tuple[PeftConfig, dict[str, Tensor], nn.Module]:
    if adapter.is_file():
        if name is None:
            raise UsageError(f"{adapter} does not name its base: add --pipeline NAME_OR_FOLDER")
        model = bare_model(name, {})
        config, tensors = read_foreign(adapter, model, part)
        config.base_model_name_or_path = name
        check_fit(expected_tensors(model, config, str(adapter)), described(tensors), str(adapter), model, config)
        return config, tensors, model
    files = find_adapter(adapter)
    config = read_config(files.config)
    name = name or config.base_model_name_or_path
    if not name:
        raise UsageError(f"{adapter} does not name its base: add --pipeline NAME_OR_FOLDER")
    infos, _ = read_header(files.weights)
    model = bare_model(name, infos)
    expected = expected_tensors(model, config, str(files.config))
    check_fit(expected, infos, str(files.weights), model, config)
    return config, read_tensors(files.weights, expected.limits, expected.ascending), model


@contextlib.contextmanager
def _as_folder(config: PeftConfig, tensors: dict[str, Tensor]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        _save(config, tensors, Path(folder))
        yield Path(folder)


def _save(config: PeftConfig, tensors: dict[str, Tensor], folder: Path) -> None:
    config.inference_mode = True
    config.save_pretrained(str(folder))
    held = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(held, folder / SAFETENSORS_WEIGHTS_NAME, {"format": "pt"})
