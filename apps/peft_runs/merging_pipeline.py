"""Merge adapters into a pipeline: a folder that diffusers loads by itself, with the outputs of the adapted one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_peft.pipelines.assemble import forget_places
from diffusion_peft.pipelines.kinds import Kind, kind_of
from diffusion_peft.pipelines.opening import DTYPES, INDEX, open_pipeline, read_index, without_noise
from peft_runs.durable import whole_folder, write_json
from peft_runs.errors import RunError, UsageError
from peft_runs.merging import check_keys, merged_model
from peft_runs.put_on import Weighed, base_of, put_on


@dataclass(frozen=True)
class MergedPipeline:
    """What was written.

    Attributes:
        pipeline: the base's name.
        part: which part was changed, `unet` or `transformer`.
        difference: largest absolute difference of the denoiser's outputs, adapted to merged as diffusers loads it.
        largest: largest absolute output, to judge the difference by.
    """

    pipeline: str
    part: str
    difference: float
    largest: float


def merge_pipeline(
    adapters: Sequence[Weighed], out: Path, name: str | None = None, dtype: str = "float32"
) -> MergedPipeline:
    """Merge adapters, with their weights, and write the whole pipeline to `out`.

    The outputs are compared after the written denoiser was loaded again; only then the folder gets its name.

    Args:
        adapters: put on together.
        out: a new folder.
        name: the base; where not given, the one that the first adapter names.
        dtype: of the written weights, a key of `DTYPES`; the merging itself is done in float32.

    Raises:
        AdapterError, DataError: an adapter or the pipeline cannot be had, or do not belong together.
        UsageError: the folder exists, or no base is named.
        RunError: a method cannot be merged, or not into what diffusers loads; the reason is told.
    """
    if out.exists():
        raise UsageError(f"{out} exists already: choose another --out")
    name = name or base_of(adapters[0])
    pipeline = open_pipeline(name)
    kind = kind_of(pipeline)
    expected, known = set(kind.denoiser.state_dict()), probe(kind)
    adapted = put_on(kind.denoiser, adapters)
    wanted = known.of(kind, kind.denoiser)
    merged: Any = adapted if adapters[0].whole else merged_model(adapted)
    check_keys(set(merged.state_dict()), expected, f"the base's {type(merged).__name__}", "diffusers")
    pipeline.register_modules(**{kind.part: merged})
    with whole_folder(out) as aside:
        with without_noise():
            pipeline.to(DTYPES[dtype]).save_pretrained(aside, safe_serialization=True)
            write_json(aside / INDEX, read_index(name))  # of the same parts; diffusers leaves a DiT's labels out
            forget_places(aside)
            plain = type(merged).from_pretrained(aside / kind.part, dtype=torch.float32).eval()
        found = known.of(kind, plain)
        if not torch.isfinite(found).all():
            raise RunError(f"the merged pipeline's outputs hold NaN or infinity in {dtype}; nothing was written")
    return MergedPipeline(name, kind.part, (found - wanted).abs().max().item(), wanted.abs().max().item())


@dataclass(frozen=True)
class Probe:
    """Noise at two timesteps, and what the denoiser is told beside it."""

    latents: Tensor
    given: dict[str, Tensor]

    @torch.no_grad()
    def of(self, kind: Kind, denoiser: Any) -> Tensor:
        """The outputs in float32."""
        return kind.predict(denoiser, self.latents, torch.tensor([100, 700]), self.given).float()


@torch.no_grad()
def probe(kind: Kind) -> Probe:
    """The same for all denoisers of a kind and size; a few latents along a side are enough to reach every weight."""
    vae = kind.pipeline.vae.config
    side = int(kind.denoiser.config.get("sample_size") or 16)
    shape = (2, vae.latent_channels, side, side)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    size = float(side * 2 ** (len(vae.block_out_channels) - 1))
    framing = torch.tensor([[size, size, 0, 0, size, size]] * 2)
    return Probe(latents, {**kind.encode(["", ""], torch.device("cpu")), "framing": framing})
