"""`diffusion-peft merge`: write adapters into a plain pipeline, which needs no adapter any more."""

import argparse
import sys
from pathlib import Path

from peft_runs.families import Family


def run(family: Family, words: list[str]) -> None:
    """Merge, and say how far the outputs moved.

    Raises:
        UsageError: a path or name that does not exist.
        AdapterError, DataError, RunError: what is named is damaged, does not belong together, or cannot be merged.
    """
    parser = argparse.ArgumentParser(
        prog=f"{family.program} merge",
        description="Merge adapters into their pipeline; the folder loads with diffusers alone.",
        allow_abbrev=False,
    )
    parser.add_argument("adapter", nargs="+", metavar="FOLDER[:WEIGHT]", help="an adapter's folder, or a run's")
    parser.add_argument("--out", type=Path, required=True, help="the new folder")
    parser.add_argument("--pipeline", help="embedded name, folder, or name of the hub (default: the adapter's base)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"), help="of the weights")
    options = parser.parse_args(words)

    from peft_runs.merging_pipeline import merge_pipeline
    from peft_runs.put_on import Weighed

    adapters = [Weighed.read(text) for text in options.adapter]
    merged = merge_pipeline(adapters, options.out, options.pipeline, options.dtype)
    tell(family, options.out, merged, options.dtype)


def tell(family: Family, out: Path, merged: object, dtype: str) -> None:
    """Say what was written, and how it is loaded."""
    from peft_runs.merging_pipeline import MergedPipeline

    assert isinstance(merged, MergedPipeline)
    if dtype != "float32":
        print(
            f"{family.program}: {dtype} rounds every weight, small changes of large weights away; "
            "the difference below includes it",
            file=sys.stderr,
        )
    size = sum(path.stat().st_size for path in out.rglob("*.safetensors"))
    print(f"wrote {out}: {merged.pipeline} with another {merged.part} ({size:,} bytes of {dtype})")
    print(
        f"largest difference of the {merged.part}'s outputs, adapted to merged: {merged.difference:.3g} "
        f"(outputs up to {merged.largest:.3g})"
    )
    print(f"load it: DiffusionPipeline.from_pretrained({str(out)!r})")
