"""The base model's own pictures of a class, made once, kept as files, and made again where some are missing."""

import os
from collections.abc import Callable
from pathlib import Path

from diffusion_peft.data.folder import FolderPictures
from diffusion_peft.data.framing import Some
from diffusion_peft.pipelines.kinds import Kind
from diffusion_peft.pipelines.sampling import Sampling, sample
from diffusion_peft.tasks.tuning_spec import PriorSpec
from peft_kernels.data_errors import DataError

ABOUT = "about.txt"


def class_pictures(
    kind: Kind,
    spec: PriorSpec,
    folder: Path,
    size: int,
    about: str,
    batch: int,
    told: Callable[[str, int, int], None] | None = None,
) -> Some:
    """`spec.count` pictures for `spec.prompt`, the n-th with seed n, in `folder`; `about` tells base and settings.

    Raises:
        DataError: the folder holds pictures of something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / ABOUT
    if note.is_file() and note.read_text(encoding="utf-8") != about:
        raise DataError(f"{folder} holds other pictures of a class than this recipe asks for: name another folder")
    note.write_text(about, encoding="utf-8")
    assert spec.prompt is not None
    names = [folder / f"{seed:05d}.png" for seed in range(spec.count)]
    missing = [seed for seed, path in enumerate(names) if not path.is_file()]
    device = kind.device
    given, absent = kind.encode([spec.prompt], device), kind.encode([""], device)
    for begin in range(0, len(missing), batch):
        seeds = missing[begin : begin + batch]
        rows = {name: row.repeat_interleave(len(seeds), 0) for name, row in given.items()}
        for seed, picture in zip(
            seeds, sample(kind, rows, absent, seeds, Sampling(spec.steps, spec.guidance, size)), strict=True
        ):
            aside = names[seed].with_suffix(".writing")
            picture.save(aside, "PNG")
            os.replace(aside, names[seed])
        if told is not None:
            told("draw the class", begin + len(seeds), len(missing))
    return Some(FolderPictures(folder, prompt=spec.prompt), range(spec.count))  # there may be more from another run
