"""`vision-peft convert`: turn a pickled file of tensors into safetensors, once, for who trusts its author."""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from peft_runs.errors import RunError, UsageError
from peft_runs.families import Family
from peft_runs.merging import check_out
from peft_runs.whole_file import whole_file

# Under which names checkpoints of training keep the weights, beside the optimiser's state and figures.
_WEIGHTS = ("base_model", "state_dict", "model", "model_state_dict")


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
    tensors = _weights(tensors)
    if not isinstance(tensors, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in tensors.items()
    ):
        raise RunError(
            f"{options.file} must hold tensors by name, alone or under one of {', '.join(_WEIGHTS)}; "
            f"found {type(tensors).__name__} of other things"
        )
    with whole_file(options.out) as aside:
        save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, aside, {"format": "pt"})
    print(f"wrote {options.out} ({len(tensors)} tensors)")


def _weights(found: Any) -> Any:
    """The weights of a checkpoint of training; anything else as it is."""
    inner = [found[name] for name in _WEIGHTS if isinstance(found, dict) and isinstance(found.get(name), dict)]
    return inner[0] if inner else found
