"""The tables of methods, formats and readers, made by exporting: `python -m tests.runs.export_table` writes them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from peft_kernels.registry import methods
from peft_runs import exporting_denoiser
from peft_runs.errors import RunError
from peft_runs.exporting import FORMATS, export_adapter
from peft_runs.exporting_denoiser import export_denoiser
from tests.kernels.saved_adapters import GENERAL
from tests.runs import saved, saved_denoisers
from tests.runs.export_readers import READERS, answer, wanted

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tables" / "export.md"
HEAD = """<!-- Written by `python -m tests.runs.export_table`; a test compares it. -->

`vision-peft export ADAPTER --to FORMAT --out PATH` writes what is exact and refuses the rest with the reason.
"""
DENOISERS = """
`diffusion-peft export` does the same for the UNet or transformer of a pipeline; here on a Stable Diffusion UNet. For
SD3, Flux and PixArt `comfy` writes diffusers' names; `kohya` fuses Flux's q, k and v, and is refused for the others.
PixArt and DiT have no `diffusers` format, since diffusers' models load none, and DiT no `comfy`.
"""
READING = """
What was written, read with the same outputs (float32, 1e-5), on the same UNet; from kohya's files diffusers leaves
DoRA's magnitudes out, with a warning. sd-scripts, LyCORIS and ComfyUI are not run here: their names and formulas were
read in their sources.
"""
DIFFUSION = "the format holds adapters of diffusion models"


def reason_in(error: RunError) -> str:
    """The reason without the advice."""
    text = str(error).partition("; --to merged")[0].removeprefix("no exact form in PEFT: ")
    if DIFFUSION.removeprefix("the format ") in text:
        return DIFFUSION
    if "could not load it" in text:
        return "the plain model has no place for the biases that merging makes"
    return text.partition("cannot be merged: ")[2].partition(" (only")[0].partition(". Keep")[0] or text


def cell(out: Path, write: Callable[[Path], object]) -> str:
    """``yes``, or the reason why not."""
    try:
        write(out)
    except RunError as error:
        assert not out.exists()
        return reason_in(error)
    assert out.exists()
    return "yes"


def rows(first: str, columns: Iterable[str], cells: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A table whose reasons are numbered below it."""
    reasons = list(dict.fromkeys(text for row in cells.values() for text in row.values() if text not in ("yes", "")))
    lines = [f"| {first} | " + " | ".join(columns) + " |", "|---" * (len(list(columns)) + 1) + "|"]
    for name, row in cells.items():
        answers = [f"no ({reasons.index(text) + 1})" if text in reasons else text for text in row.values()]
        lines.append(f"| {name} | " + " | ".join(answers) + " |")
    return [*lines, "", *(f"{i}. {text}." for i, text in enumerate(reasons, 1))]


def of_vision(root: Path) -> list[str]:
    """The table of `vision-peft export`, from the adapters that `saved.save_all` wrote to ``root``."""

    def write(name: str, to: str) -> str:
        base = root / "base.safetensors"
        out = root / f"{name}-{to}{'.safetensors' if to == 'merged' else ''}"
        return cell(out, lambda out: export_adapter(root / name, to, out, checkpoint=base))

    return rows("method", FORMATS, {name: {to: write(name, to) for to in FORMATS} for name in GENERAL})


def of_denoisers(root: Path) -> list[str]:
    """The tables of `diffusion-peft export`, from what `saved_denoisers.save_all` writes to ``root``."""
    refused = saved_denoisers.save_all(root)
    formats = exporting_denoiser.FORMATS
    made: dict[str, dict[str, str]] = {}
    reading: dict[str, dict[str, str]] = {}
    for name in sorted(methods()):
        if name in refused:
            made[name] = dict.fromkeys(formats, "it cannot be put on a denoiser")
            continue
        made[name] = {}
        expected = wanted(root, name)
        for to in formats:
            out = root / f"{name}-{to}{'' if to in ('peft', 'merged') else '.safetensors'}"
            made[name][to] = cell(out, lambda out, name=name, to=to: export_denoiser(root / name, to, out))
            if made[name][to] == "yes" and to != "merged":
                reading[f"{name}, {to}"] = {reader: answer(root, out, reader, expected) for reader in READERS}
    return [*rows("method", formats, made), READING, *rows("written", READERS, reading)]


def table(vision: Path, denoisers: Path) -> str:
    """The page."""
    return "\n".join([HEAD, *of_vision(vision), DENOISERS, *of_denoisers(denoisers), ""])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        saved.save_all(Path(one))
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(table(Path(one), Path(other)), encoding="utf-8")
