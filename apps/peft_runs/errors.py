"""What a person is told when something cannot be done: one sentence, and the nearest thing that can be."""

from collections.abc import Iterable
from difflib import get_close_matches


class UsageError(Exception):
    """The command or recipe asks for something that does not exist: exit code 2."""


class RunError(Exception):
    """The run was understood and could not be finished: exit code 1."""


def unknown(what: str, name: str, known: Iterable[str]) -> UsageError:
    """`unknown recipe 'digit_snell': the nearest is 'digits_snell'` – or the whole list where nothing is near."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return UsageError(f"unknown {what} {name!r}: the nearest is {near[0]!r}")
    return UsageError(f"unknown {what} {name!r}: known are {', '.join(names) if names else 'none'}")
