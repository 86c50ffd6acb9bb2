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

from peft_runs.errors import UsageError
from peft_runs.families import Family

_SHOWN = 5  # names of a list that a line shows


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

    def row(name: str, value: object) -> None:
        if value not in (None, "", [], {}):
            table.add_row(name, escape(str(value)))

    row("file", report["file"])
    row("method", report["method"])
    row("keys named as in", report["naming"])
    row("base model", report["base_model"])
    row("size", f"{report['parameters']:,} parameters, {report['bytes']:,} bytes, {_counted(report['dtypes'])}")
    row("ranks", ", ".join(f"{rank} in {count} layers" for rank, count in report["ranks"].items()))
    row("alpha", ", ".join(f"{alpha:g}" for alpha in report["alphas"]))
    row("settings", ", ".join(f"{key}={_short(value)}" for key, value in report["settings"].items()))
    row("targets", report["targets"])
    row("trained in full", _some(report["trained_in_full"]))
    for key, value in report["metadata"].items():
        if key != "format":
            row(f"header: {key}", value if len(value) <= 200 else f"{value[:200]} ... ({len(value):,} characters)")
    fit = report["fit"]
    if fit:
        row(f"against {fit['model']}", f"{fit['matched']} match, {fit['share']:.0%} of all")
        for name in ("misfits", "missing", "unexpected", "text"):
            row(f"  {name}", f"{len(fit[name])}: {_some(fit[name])}" if fit[name] else None)
    for program, answer in report["readers"].items():
        row(f"read by {program}", answer)
    for problem in report["problems"]:
        row("problem", problem)
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


def _short(value: Any) -> str:
    """A setting in words; of a long table (SaRA's plan and fingerprints) its first entry."""
    if not isinstance(value, dict):
        return repr(value)
    few = len(value) <= _SHOWN
    shown = [f"{key!r}: {_short(part)}" for key, part in list(value.items())[: _SHOWN if few else 1]]
    return "{" + ", ".join(shown if few else [*shown, f"... {len(value):,} in all"]) + "}"


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} tensors of {name}" for name, count in counts.items())


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
