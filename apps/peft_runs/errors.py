"""What a person is told when something cannot be done: one sentence, and the nearest thing that can be.

An exception with an `exit_code` is meant for the person who typed the command; the families' own have one, too.
"""

from collections.abc import Iterable

from peft_kernels.config import nearest_or_known


class UsageError(Exception):
    """The command or recipe asks for something that does not exist."""

    exit_code = 2


class RunError(Exception):
    """The run was understood and could not be finished."""

    exit_code = 1


def unknown(what: str, name: str, known: Iterable[str]) -> UsageError:
    """`unknown recipe 'digit_snell' (did you mean 'digits_snell'?)`, or the known names where none is near."""
    return UsageError(f"unknown {what} {name!r}{nearest_or_known(name, sorted(known))}")


def sentence(error: BaseException) -> str:
    """The message alone, where a data worker has wrapped it into its traceback."""
    text = str(error).strip()
    if "Original Traceback" in text:
        text = text.splitlines()[-1].partition(": ")[2]
    return text
