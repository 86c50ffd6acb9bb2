"""What is told when data or a model cannot be had: one sentence; `exit_code` is what a command ends with."""

from collections.abc import Iterable

from peft_kernels.config import nearest_or_known


class DataError(ValueError):
    """The data are not there or not readable; the message names the file."""

    exit_code = 1


class UnknownNameError(DataError):
    """There is no such data set, part or model; the message tells the nearest name."""

    exit_code = 2


def unknown(what: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """`unknown data 'digit' (did you mean 'digits'?)`, or the known names where none is near."""
    return UnknownNameError(f"unknown {what} {name!r}{nearest_or_known(name, known)}")
