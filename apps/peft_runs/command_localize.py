"""`diffusion-peft localize`: find the attention layers of a text-to-image pipeline that draw the text."""

import argparse
import json
from pathlib import Path
from typing import Any

from peft_runs.errors import UsageError
from peft_runs.families import Family


def run(family: Family, words: list[str]) -> None:
    """Search, draw, and say which layers are the best.

    Raises:
        UsageError: nothing to search with, prompts or layers that cannot be used, or a folder that exists.
        DataError, AdapterError: the pipeline, an adapter or a reader cannot be had.
    """
    options = parser(family).parse_args(words)
    if options.resume:
        if len(words) > 3:
            raise UsageError("--resume goes on with what was asked: it takes --out FOLDER alone")
        words = [*asked_before(options.out), "--out", str(options.out)]
        options = parser(family).parse_args(words)
    elif options.out.exists():
        raise UsageError(f"{options.out} exists already: choose another --out, or add --resume alone")
    if not options.pipeline and not options.adapter:
        raise UsageError("nothing to search: add --pipeline NAME_OR_FOLDER or --adapter FOLDER")

    from accelerate import PartialState

    from peft_runs.localizing import Asked, Folder, localize
    from peft_runs.progress import RunProgress
    from peft_runs.put_on import Weighed, base_of

    adapters = tuple(Weighed.read(text) for text in options.adapter)
    taken = ("layers", "reader", "metrics", "score", "steps", "guidance", "start_step", "seed", "batch", "at_once")
    asked = Asked(
        pipeline=options.pipeline or base_of(adapters[0]),
        adapters=adapters,
        prompts=prompts(options),
        **{name: getattr(options, name) for name in (*taken, "largest_set", "size", "dtype")},
    )
    device: Any = PartialState(cpu=options.device == "cpu").device
    with RunProgress() as progress:
        said = localize(asked, Folder(options.out, words), device, progress)
    print(said)


def asked_before(out: Path) -> list[str]:
    """The words that a stopped search was asked with.

    Raises:
        UsageError: the folder is none of a search.
    """
    from peft_runs.localizing import ASKED

    try:
        return list(json.loads((out / ASKED).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        raise UsageError(f"{out} holds no search that was stopped: leave --resume out") from None


def parser(family: Family) -> argparse.ArgumentParser:
    """What can be asked."""
    made = argparse.ArgumentParser(
        prog=f"{family.program} localize",
        description="Score every attention layer that reads the text by what happens when it alone reads another text.",
        allow_abbrev=False,
        epilog="The folder gets localization.json (every measure of every picture), layers.png, grid.png, report.html.",
    )
    add = made.add_argument
    add("--pipeline", help="embedded name, folder, or name of the hub (default: the base that the first adapter names)")
    add("--adapter", action="append", default=[], metavar="FOLDER[:WEIGHT]", help="an adapter's folder, or a run's")
    add("--prompt", action="append", default=[], help='with one word in quotes; the words are exchanged: a sign "CAT"')
    add("--pair", action="append", default=[], nargs=2, metavar=("SOURCE", "TARGET"), help="two prompts")
    add("--prompts", type=Path, metavar="FILE", help="a prompt a line, or SOURCE and TARGET with a tab between them")
    add("--layers", nargs="+", type=number_or_name, help="numbers in the order of execution, or names (default: all)")
    add("--reader", help="what reads the pictures: letters (mini_sd's words), easyocr or tesseract")
    add("--metric", action="append", default=[], dest="metrics", help="lpips, dists, a timm model, clip:FOLDER")
    add("--score", help="the measure to rank by (default: f1_target with a reader, else ssim_target)")
    add("--sets", type=int, default=3, dest="largest_set", help="score the best two, three, ... together (default: 3)")
    add("--steps", type=int, default=50, help="of the pipeline's own scheduler (default: 50)")
    add("--guidance", type=float, default=5.0, help="strength of the guidance (default: 5)")
    add("--start-step", type=int, default=0, help="first step in which the other text is read (default: 0)")
    add("--seed", type=int, default=42, help="of the first picture; each has its own (default: 42)")
    add("--batch", type=int, default=4, help="pairs at once (default: 4)")
    add("--at-once", type=int, default=1, help="layers at once: each adds a picture for every pair (default: 1)")
    add("--size", type=int, help="pixels along a side (default: the pipeline's own)")
    add("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the weights")
    add("--device", default="auto", choices=("auto", "cpu"))
    add("--resume", action="store_true", help="go on with a search that was stopped; with --out alone")
    add("--out", type=Path, required=True, help="the new folder")
    return made


def number_or_name(text: str) -> int | str:
    """A layer as it is named on the command line."""
    return int(text) if text.lstrip("-").isdigit() else text


def prompts(options: argparse.Namespace) -> tuple[str | tuple[str, str], ...]:
    """All prompts, or all pairs.

    Raises:
        UsageError: there are none, or the file cannot be read.
    """
    found: list[str | tuple[str, str]] = [*options.prompt, *((source, target) for source, target in options.pair)]
    if options.prompts is not None:
        try:
            lines = options.prompts.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the prompts {options.prompts} cannot be read: {error}") from None
        for line in filter(str.strip, lines):
            parts = [part.strip() for part in line.split("\t")]
            if len(parts) > 2:
                raise UsageError(f"a line of {options.prompts} has {len(parts)} parts, expected SOURCE, TARGET: {line}")
            found.append((parts[0], parts[1]) if len(parts) == 2 else parts[0])
    if not found:
        raise UsageError("nothing is asked for: add --prompt WORDS, --pair SOURCE TARGET or --prompts FILE")
    return tuple(found)
