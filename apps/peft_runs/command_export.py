"""`vision-peft export`: write an adapter in another program's format."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from peft_runs.families import Family


def run(family: Family, words: list[str]) -> None:
    """Write it, or refuse with the reason.

    Raises:
        UsageError: an unknown format, path or name.
        AdapterError, RunError: the adapter is damaged, for another model, or has no exact form in the format.
    """
    from peft_runs.exporting import FORMATS, export_adapter
    from peft_runs.run_folder import adapter_in

    parser = parser_of(
        family, FORMATS, "the adapter's folder, or a run's", "folder (peft) or safetensors file (merged)"
    )
    parser.add_argument("--model", help="base model in timm (default: the one that the adapter names)")
    parser.add_argument("--checkpoint", type=Path, help="merged: the base model's weights (default: pretrained)")
    options = parser.parse_args(words)
    adapter = adapter_in(options.adapter)
    merged = export_adapter(adapter, options.to, options.out, options.model, options.checkpoint)
    if merged is None:
        print(f"wrote {options.out}: PeftModel.from_pretrained(model, {str(options.out)!r}) reads it, with PEFT alone")
    else:
        from peft_runs.command_merge import tell

        tell(family, options.out, merged, "float32")


def parser_of(family: Family, formats: Mapping[str, str], adapter: str, out: str) -> argparse.ArgumentParser:
    """What both families' command takes: an adapter, a format and a new place, described in these words."""
    told = "; ".join(f"{name}: {text}" for name, text in formats.items())
    parser = argparse.ArgumentParser(
        prog=f"{family.program} export",
        description=f"Write an adapter in another program's format, where that is exact. {told}.",
        allow_abbrev=False,
    )
    parser.add_argument("adapter", type=Path, help=adapter)
    parser.add_argument("--to", required=True, help="the format")
    parser.add_argument("--out", type=Path, required=True, help=f"the new {out}")
    return parser
