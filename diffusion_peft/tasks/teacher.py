"""What a frozen pipeline draws in many steps, kept as latents in files: drawn once, and again where one is missing."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from diffusion_peft.data.drawn import Key
from diffusion_peft.data.folder import FolderPictures
from diffusion_peft.pipelines.kinds import Given, Kind
from diffusion_peft.pipelines.one_step import one_step_scheduler
from diffusion_peft.pipelines.sampling import Sampling, drawn, starting_noise, with_scheduler
from diffusion_peft.tasks.one_step_spec import OneStepData, TeacherSpec
from peft_kernels.data_errors import DataError

ABOUT, LOCK = "about.json", "drawing.lock"
# Their `output_type="latent"` gives what the denoiser takes; DiT's has none, and Flux's is packed.
LATENT = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "PixArtAlphaPipeline", "PixArtSigmaPipeline")
PIPELINES = (*LATENT, "StableDiffusion3Pipeline")


class TeacherPictures(Dataset):
    """Samples `noise` and `latents` `[C, h, w]`, the number of the `caption`, and the `framing` `[6]` of the picture.

    The noise is made again from its seed each time.
    """

    def __init__(self, latents: Tensor, captions: Sequence[int], seeds: Sequence[int], size: int, dtype: torch.dtype):
        self.latents, self.captions, self.seeds, self.dtype = latents, captions, seeds, dtype
        self.framing = torch.tensor([size, size, 0, 0, size, size], dtype=torch.float32)

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        index = key[1]
        return {
            "noise": starting_noise(self.latents.shape[1:], self.seeds[index], self.dtype),
            "latents": self.latents[index].float(),
            "caption": torch.tensor(self.captions[index]),
            "framing": self.framing,
        }


def captions_of(data: OneStepData, part: str) -> list[str]:
    """The captions of a part, those of the recipe before those of the file or folder.

    Raises:
        DataError: there are none.
    """
    if part == "test" and data.test_prompts:
        return list(dict.fromkeys(data.test_prompts))
    found = list(data.prompts)
    if data.root is not None:
        root = Path(data.root).expanduser()
        if root.is_file() and root.suffix == ".txt":
            found += [line.strip() for line in root.read_text(encoding="utf-8").splitlines()]
        else:
            found += FolderPictures(root, data.column).captions
    found = [caption for caption in dict.fromkeys(found) if caption]
    if not found:
        raise DataError("there are no captions: add --data.prompts '[A, B]' or --data.root FILE_OR_FOLDER")
    return found


def teacher_scheduler(scheduler: Any, spec: TeacherSpec) -> Any:
    """The teacher's, which begins on pure noise at the very timestep of the one step.

    Raises:
        DataError: this pipeline's cannot.
    """
    made = one_step_scheduler(scheduler)
    if spec.solver == "ddim" or isinstance(made, FlowMatchEulerDiscreteScheduler):
        return made
    return DPMSolverMultistepScheduler.from_config(made.config)


def check_latents(kind: Kind) -> None:
    """Raise a DataError where the pipeline hands out no latents."""
    name = type(kind.pipeline).__name__
    if name not in PIPELINES:
        raise DataError(f"a {name} hands out no latents to learn one step from: this is for {', '.join(PIPELINES)}")


def teacher_latents(
    teacher: Callable[[], Kind],
    spec: TeacherSpec,
    rows: Given,
    absent: Given,
    seeds: Sequence[int],
    size: int,
    folder: Path,
    about: dict[str, Any],
    batch: int,
    told: Callable[[str, int, int], None] | None = None,
) -> Tensor:
    """Latents `[N, C, h, w]`, float16, of one picture for each of `rows` and its seed, kept in `folder` by batches.

    Args:
        teacher: gives the pipeline, where something is to be drawn.
        spec: solver, steps and guidance.
        rows: encoded captions.
        absent: the row of no caption.
        seeds: one a picture.
        size: pixels along a side.
        folder: keeps the files.
        about: what the latents depend on; a folder of anything else is refused.
        batch: pictures drawn at once, and in one file.
        told: hears of the progress.

    Raises:
        DataError: the folder holds latents of something else, or a damaged file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note, text = folder / ABOUT, json.dumps(about, indent=2, sort_keys=True)
    if note.is_file() and note.read_text(encoding="utf-8") != text:
        raise DataError(f"{folder} holds latents of another teacher than this recipe's: name another --data.cache")
    note.write_text(text, encoding="utf-8")
    how, parts = Sampling(spec.steps, spec.guidance, size), []
    kind: Kind | None = None
    with FileLock(folder / LOCK):  # of runs side by side one draws, and the others read
        for begin in range(0, len(seeds), batch):
            path = folder / f"{begin:08d}.safetensors"
            if not path.is_file():
                kind = kind or teacher()
                some = {name: row[begin : begin + batch] for name, row in rows.items()}
                with with_scheduler(kind.pipeline, teacher_scheduler(kind.pipeline.scheduler, spec)):
                    found = drawn(kind, some, absent, seeds[begin : begin + batch], how, "latent")
                aside = path.with_name(f".{os.getpid()}-{path.name}")
                save_file({"latents": found.half().cpu().contiguous()}, aside)
                os.replace(aside, path)
            parts.append(_read(path))
            if told is not None:
                told("draw with the teacher", min(begin + batch, len(seeds)), len(seeds))
    return torch.cat(parts)


def _read(path: Path) -> Tensor:
    try:
        return load_file(path)["latents"]
    except (OSError, KeyError, SafetensorError) as error:
        raise DataError(f"{path} is no file of latents ({error}): delete it to have it drawn again") from None
