"""The rows of the table: a capability is a name and a check that raises where a method does not have it."""

from __future__ import annotations

from collections.abc import Callable

from .case import Case

Check = Callable[[Case], None]
CHECKS: dict[str, Check] = {}


def capability(name: str) -> Callable[[Check], Check]:
    """Decorator of a check: put it into the table under ``name``; its docstring says what is checked."""

    def add(check: Check) -> Check:
        CHECKS[name] = check
        return check

    return add
