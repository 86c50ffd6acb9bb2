"""Everything that an adapter can be written as, tried: a file or folder for each format, or the reason why not."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from safetensors.torch import load_file

from peft_kernels.adapter_tensors import read_header
from peft_runs import exporting
from peft_runs.adapter_changes import WeightChange, changes_of_weights
from peft_runs.adapter_readers import PIPELINE
from peft_runs.base_models import classifiers, full_model
from peft_runs.exporting import export_adapter
from peft_runs.merging import Merged
from peft_runs.merging_pipeline import MergedPipeline

MERGED = "merged"


@dataclass(frozen=True)
class Export:
    """One format.

    Attributes:
        format: its name, as `export --to` takes it.
        about: what it is.
        path: what was written; null where there is no exact form.
        reason: why not.
        merged: of a merged model, how far its outputs are from those of the adapted one.
    """

    format: str
    about: str
    path: Path | None = None
    reason: str | None = None
    merged: Merged | MergedPipeline | None = None


def export_all(
    adapter: Path, out: Path, kind: str, base: str, refused: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Export]:
    """Write an adapter in each format that is exact, one after the other.

    Args:
        adapter: its folder; of a denoiser also another program's file.
        out: an empty folder.
        kind: of the base, `TIMM` or `PIPELINE`.
        base: the base model's name.
        refused: formats that are not tried, with the reason.
    """
    if kind == PIPELINE:
        from peft_runs.exporting_denoiser import FORMATS, export_denoiser  # late: diffusers takes long to import

        formats, write, folders = FORMATS, export_denoiser, ("peft", MERGED)
    else:
        formats, write, folders = exporting.FORMATS, export_adapter, ("peft",)
    for to, about in formats.items():
        if to in refused:
            yield Export(to, about, reason=refused[to])
            continue
        path = out / (to if to in folders else f"{to}.safetensors")
        try:
            yield Export(to, about, path, merged=write(adapter, to, path, base))
        except Exception as error:
            if not hasattr(error, "exit_code"):
                raise
            yield Export(to, about, reason=str(error))


def changes_by_merging(weights: Path, merged: Export) -> Iterator[WeightChange]:
    """What the adapter in the file ``weights`` does to its base, from the merged model that `export_all` wrote."""
    assert merged.path is not None
    if isinstance(merged.merged, MergedPipeline):
        from diffusion_peft.denoiser import denoiser
        from diffusion_peft.pipelines.opening import open_pipeline

        before = denoiser(open_pipeline(merged.merged.pipeline)).state_dict()
        after = merged.path / merged.merged.part / "diffusion_pytorch_model.safetensors"
        return changes_of_weights(before, load_file(after))
    assert merged.merged is not None
    model = full_model(merged.merged.model, read_header(weights)[0], None)
    return changes_of_weights(model.state_dict(), load_file(merged.path), classifiers(model))
