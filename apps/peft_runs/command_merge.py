"""`vision-peft merge`: write an adapter into a plain timm model, which needs no adapter any more."""

import argparse
import sys
from pathlib import Path

from peft_runs.families import Family


def run(family: Family, words: list[str]) -> None:
    """Merge, and say how far the outputs moved.

    Raises:
        UsageError: a path or name that does not exist.
        AdapterError, RunError: the adapter is damaged, for another model, or of a method that cannot be merged.
    """
    parser = argparse.ArgumentParser(
        prog=f"{family.program} merge",
        description="Merge an adapter and its head into its base model; the file loads with timm alone.",
        allow_abbrev=False,
    )
    parser.add_argument("adapter", type=Path, help="the adapter's folder, or a run's")
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    parser.add_argument("--model", help="base model in timm (default: the one that the adapter names)")
    parser.add_argument("--checkpoint", type=Path, help="the base model's weights (default: its pretrained ones)")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "float16", "bfloat16"), help="type of the written tensors"
    )
    options = parser.parse_args(words)

    from peft_runs.merging import merge_adapter
    from peft_runs.run_folder import adapter_in

    merged = merge_adapter(adapter_in(options.adapter), options.out, options.model, options.checkpoint, options.dtype)
    tell(family, options.out, merged, options.dtype)


def tell(family: Family, out: Path, merged: object, dtype: str) -> None:
    """Say what was written, and how it is loaded."""
    from peft_runs.merging import Merged

    assert isinstance(merged, Merged)
    if dtype != "float32":
        print(
            f"{family.program}: {dtype} rounds every weight, small changes of large weights away; "
            "the difference below includes it",
            file=sys.stderr,
        )
    print(f"wrote {out} ({out.stat().st_size:,} bytes, {dtype})")
    print(
        f"largest difference of logits, adapted to merged: {merged.difference:.3g} (logits up to {merged.largest:.3g})"
    )
    first = "import vision_peft; " if merged.ours else ""
    call = f"timm.create_model({merged.model!r}, num_classes={merged.classes}, checkpoint_path={str(out)!r})"
    print(f"load it: {first}{call}")
