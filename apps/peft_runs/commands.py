"""The commands: what each is called, and what a person is told when one fails."""

import errno
import os
import sys
from collections.abc import Callable
from importlib import import_module

from peft_runs.families import DIFFUSION, VISION, Family

# Command -> one line of help; the command is the function `run(family, words)` of `peft_runs.command_<name>`, unless
# the family has one of its own.
COMMANDS = {
    "train": "carry out a recipe, or go on with a run that was stopped",
    "evaluate": "judge a finished run again, or a recipe's model as it is",
    "sample": "draw pictures with a pipeline and any number of adapters",
    "localize": "find the attention layers that draw the text in a picture",
    "methods": "list the methods, or all settings of one",
    "compare": "adapt with several methods, and compare them",
    "benchmark": "carry out VTAB-1k, FGVC or a few-shot protocol, up to the papers' table",
    "sensitivity": "score a model's weights on data, and show where a budget of parameters would go",
    "inspect": "tell what an adapter's file holds, whether it fits a model, and what can read it",
    "merge": "write an adapter into a plain model, the same outputs without any adapter",
    "export": "write an adapter in another program's format, where that is exact",
    "convert": "turn a pickled file (.bin, .pt) into safetensors, if you trust its author",
}


def vision() -> None:
    """Entry point of `vision-peft`."""
    start(VISION)


def diffusion() -> None:
    """Entry point of `diffusion-peft`."""
    start(DIFFUSION)


def start(family: Family) -> None:
    """Carry out this process's command line, and end it."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's library reports its own start on stderr
    # Threads that wait in a loop slow a step down many times as soon as another process wants the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    sys.exit(main(family, sys.argv[1:]))


def main(family: Family, words: list[str]) -> int:
    """Carry out one command line; the exit code: 0 done, 1 failed, 2 not understood, 130 interrupted."""
    from peft_runs.errors import sentence, unknown

    try:
        if not words or words[0] in ("-h", "--help"):
            print(overview(family))
            return 0 if words else 2
        if words[0] not in offered(family):
            raise unknown("command", words[0], offered(family))
        name = family.own.get(words[0], words[0])
        command: Callable[[Family, list[str]], None] = import_module(f"peft_runs.command_{name}").run
        command(family, words[1:])
    except KeyboardInterrupt:
        return tell(family, "interrupted; a run goes on from its last checkpoint with --resume", 130)
    except Exception as error:
        if no_space(error):
            return tell(
                family, "no space is left on the disk: nothing half-written was kept; free some, then --resume", 1
            )
        if hasattr(error, "exit_code"):
            return tell(family, sentence(error), error.exit_code)  # type: ignore[attr-defined]
        if isinstance(error, OSError) and error.filename is not None:
            return tell(family, f"{error.filename}: {error.strerror}", 1)
        raise
    return 0


def offered(family: Family) -> dict[str, str]:
    """The commands that a family has, with their help."""
    return {name: text for name, text in COMMANDS.items() if name in family.commands}


def overview(family: Family) -> str:
    """The list of commands."""
    known = offered(family)
    width = max(map(len, known))
    lines = [f"usage: {family.program} COMMAND [--help] ...", ""]
    return "\n".join([*lines, *(f"  {name:<{width}}  {text}" for name, text in known.items())])


def tell(family: Family, message: str, code: int) -> int:
    """Say it on the error stream; of several processes that were asked the same wrong thing only the first does."""
    if code != 2 or os.environ.get("RANK", "0") == "0":
        print(f"{family.program}: {message}", file=sys.stderr)
    return code


def no_space(error: BaseException) -> bool:
    """Whether the disk is full: as Python says it, or as safetensors does."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return type(error).__name__ == "SafetensorError" and f"os error {errno.ENOSPC}" in str(error)
