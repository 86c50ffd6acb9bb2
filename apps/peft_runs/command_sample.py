"""`diffusion-peft sample`: draw prompts with seeds, from a pipeline and any number of adapters."""

import argparse
import math
from pathlib import Path
from typing import Any

from peft_runs.errors import UsageError
from peft_runs.families import Family


def run(family: Family, words: list[str]) -> None:
    """Draw, and say where the pictures lie.

    Raises:
        UsageError: nothing to draw with or from, or a folder that exists.
        DataError, AdapterError: the pipeline or an adapter cannot be had, or do not belong together.
    """
    parser = argparse.ArgumentParser(
        prog=f"{family.program} sample",
        description="Draw every prompt with every seed; the folder holds the pictures, a grid, and how each was made.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--pipeline", help="embedded name, folder, or name of the hub (default: the base that the first adapter names)")
    add("--adapter", action="append", default=[], metavar="FOLDER[:WEIGHT]", help="an adapter's folder, or a run's")
    add(
        "--prompt",
        "--class",
        action="append",
        default=[],
        dest="prompt",
        help="a caption, or a class by label or number",
    )
    add(
        "--image",
        type=Path,
        action="append",
        default=[],
        help="a picture whose edges, depth or colours steer, as each adapter was trained; one, or one for each prompt",
    )
    add(
        "--condition",
        type=Path,
        action="append",
        default=[],
        help="instead, a condition image as it is, for each adapter that is steered, in their order",
    )
    add("--negative", default="", help="what guidance leads away from (default: no caption)")
    add("--seeds", type=int, nargs="+", default=[0], help="one picture a prompt for each (default: 0)")
    add("--steps", type=int, help="of the pipeline's own scheduler (default: 25; 1 with an adapter for one step)")
    add("--guidance", type=float, help="its strength (default: 4; in one step what the adapter was trained with)")
    add("--size", type=int, help="pixels along a side (default: the pipeline's own)")
    add("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the weights")
    add("--batch", type=int, default=8, help="pictures at once (default: 8)")
    add("--device", default="auto", choices=("auto", "cpu"))
    add("--compare-base", action="store_true", help="also draw without the adapters, side by side in the grid")
    add("--out", type=Path, required=True, help="the new folder")
    options = parser.parse_args(words)
    if not options.prompt:
        raise UsageError("nothing is asked for: add --prompt WORDS, once for each prompt")
    for name in ("steps", "batch"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UsageError(f"--{name} must be at least 1, found {getattr(options, name)}")
    if options.guidance is not None and not math.isfinite(options.guidance):
        raise UsageError(f"--guidance must be a finite number, found {options.guidance}")
    if options.image and options.condition:
        raise UsageError("condition images are either computed from --image, or given as --condition")
    for path in (*options.image, *options.condition):
        if not path.is_file():
            raise UsageError(f"there is no picture {path}")
    if options.out.exists():
        raise UsageError(f"{options.out} exists already: choose another --out")

    from accelerate import PartialState

    from diffusion_peft.pipelines.one_step import FILE as ONE_STEP
    from diffusion_peft.pipelines.one_step import OneStep
    from peft_runs.durable import whole_folder
    from peft_runs.progress import RunProgress
    from peft_runs.put_on import Weighed, base_of
    from peft_runs.samples import GRID, Asked, draw

    adapters = tuple(Weighed.read(text) for text in options.adapter)
    if not options.pipeline and not adapters:
        raise UsageError("nothing to draw with: add --pipeline NAME_OR_FOLDER or --adapter FOLDER")
    once = [OneStep.load(adapter.folder) for adapter in adapters if (adapter.folder / ONE_STEP).is_file()]
    if options.steps is None:
        options.steps = 1 if once else Asked.steps
    if options.guidance is None:
        options.guidance = once[0].guidance if once and options.steps == 1 else Asked.guidance
    asked = Asked(
        pipeline=options.pipeline or base_of(adapters[0]),
        adapters=adapters,
        prompts=tuple(options.prompt),
        seeds=tuple(options.seeds),
        images=tuple(options.image),
        conditions=tuple(options.condition),
        **{name: getattr(options, name) for name in ("negative", "steps", "guidance", "size", "dtype", "batch")},
        compare_base=options.compare_base,
    )
    device: Any = PartialState(cpu=options.device == "cpu").device
    with RunProgress() as progress, whole_folder(options.out) as aside:
        draw(asked, aside, device, progress)
    count = len(asked.prompts) * len(asked.seeds)
    print(f"drew {count} pictures with {asked.pipeline}: {options.out / GRID}")
