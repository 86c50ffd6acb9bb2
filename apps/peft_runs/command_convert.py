"""`vision-peft convert`: turn a pickled file of tensors into safetensors, once, for who trusts its author."""

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from peft_runs.errors import RunError, UsageError
from peft_runs.families import Family
from peft_runs.merging import check_out
from peft_runs.whole_file import whole_file


def run(family: Family, words: list[str]) -> None:
    """Read with torch's restricted unpickler and write the tensors.

    Raises:
        UsageError: a path that does not suit.
        RunError: the file cannot be read so, or holds other things than tensors by name.
    """
    parser = argparse.ArgumentParser(
        prog=f"{family.program} convert",
        description="Turn a pickled file of tensors (.bin, .pt, .pth) into safetensors. Reading a pickle can run code: "
        "torch's restricted reader (weights_only) is used, which is no sandbox. Convert only files you trust.",
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    options = parser.parse_args(words)
    check_out(options.out)
    if not options.file.is_file():
        raise UsageError(f"there is no file {options.file}")
    print(f"{family.program}: reading a pickle; weights_only is no sandbox", file=sys.stderr)
    try:
        tensors = torch.load(options.file, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler fails in any way it likes on a file made to harm
        reason = str(error).strip().splitlines()[0]
        raise RunError(f"{options.file} cannot be read as tensors alone: {reason}") from None
    if not isinstance(tensors, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in tensors.items()
    ):
        raise RunError(f"{options.file} must hold tensors by name; found {type(tensors).__name__} of other things")
    with whole_file(options.out) as aside:
        save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, aside, {"format": "pt"})
    print(f"wrote {options.out} ({len(tensors)} tensors)")
