"""`vision-peft inspect`: what an adapter's file holds, whether it fits a model, and which programs can read it."""

import argparse
import json
import math
import warnings
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from peft_runs.adapter_words import facts, fit_lines
from peft_runs.errors import UsageError
from peft_runs.families import Family


def run(family: Family, words: list[str]) -> None:
    """Print the report, as tables or with ``--json`` as one JSON object.

    Raises:
        UsageError: there is no such path or model.
        AdapterError: the file is a pickle or damaged.
    """
    parser = argparse.ArgumentParser(
        prog=f"{family.program} inspect",
        description="Read any adapter: this project's, PEFT's, and LoRA files of kohya, LyCORIS and diffusers.",
        allow_abbrev=False,
    )
    parser.add_argument("path", type=Path, metavar="FILE_OR_FOLDER")
    parser.add_argument(
        "--model",
        help="compare its keys with this model of timm, or this pipeline's denoiser (default: the one the file names)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    drawing = parser.add_argument_group("a figure of FDConv (gains of the groups of frequencies, maps of the bands)")
    drawing.add_argument("--figure", type=Path, metavar="PNG", help="write it, instead of the report")
    drawing.add_argument("--image", type=Path, help="the picture that it is for")
    drawing.add_argument("--layer", help="whose maps it shows (default: the first that has some)")
    drawing.add_argument("--checkpoint", type=Path, help="the base model's weights (default: its pretrained ones)")
    options = parser.parse_args(words)
    if options.figure is not None:
        _draw(options)
        return
    if options.image or options.layer or options.checkpoint:
        raise UsageError("--image, --layer and --checkpoint are for a figure: add --figure PNG")

    from peft_runs.adapter_report import inspect_adapter
    from peft_runs.run_folder import adapter_in

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PEFT says while a copy of the model is fitted
        report = inspect_adapter(adapter_in(options.path), options.model).as_dict()
    if options.json:
        print(json.dumps(report, default=str))
        return
    console = Console()
    console.print(_overview(report))
    if report["layers"]:
        console.print(_layers(report["layers"]))


def _draw(options: argparse.Namespace) -> None:
    from peft_runs.fdconv_figure import draw_adapter
    from peft_runs.run_folder import adapter_in

    if options.image is None:
        raise UsageError("--figure needs a picture: add --image FILE")
    layer = draw_adapter(
        adapter_in(options.path), options.image, options.figure, options.layer, options.model, options.checkpoint
    )
    print(f"wrote {options.figure}" + (f" (maps of {layer})" if layer else " (no layer has bands)"))


def _overview(report: dict[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    readers = ((f"read by {program}", answer) for program, answer in report["readers"].items())
    problems = (("problem", problem) for problem in report["problems"])
    for name, value in (*facts(report), *fit_lines(report["fit"]), *readers, *problems):
        table.add_row(name, escape(value))
    return table


def _layers(layers: list[dict[str, Any]]) -> Table:
    columns = {
        "layer": [escape(layer["name"]) for layer in layers],
        "parameters": [f"{layer['parameters']:,}" for layer in layers],
        "rank": [str(layer["rank"] or "") for layer in layers],
        "norm": ["NaN" if layer["norm"] is None else f"{layer['norm']:.4g}" for layer in layers],
        "norm of the change": [_number(layer["change"]) for layer in layers],
    }
    table = Table(box=None, pad_edge=False)
    filled = {name: values for name, values in columns.items() if any(values)}
    for name in filled:
        table.add_column(name, justify="left" if name == "layer" else "right", overflow="fold")
    for values in zip(*filled.values(), strict=True):
        table.add_row(*values)
    return table


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.4g}"
