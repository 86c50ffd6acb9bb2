"""Runs a cell's check, and writes what the cells say as Markdown."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import choosing, computing, lifecycle, merging, storage
from .capability import CHECKS
from .case import Case, quiet
from .lack import NO_MEANING
from .layers import LAYERS
from .methods import METHODS

# The rows, in the order of an adapter's life.
CAPABILITIES = {
    name: check
    for module in (lifecycle, merging, storage, choosing, computing)
    for name, check in CHECKS.items()
    if check.__module__ == module.__name__
}
HEADER = """# What each method can do

<!-- Made by `python -m tests.kernels.capabilities --write docs/tables/capabilities.md`; edit the checks instead. -->

Each cell is a check in `tests/kernels/capabilities`, run by `tests/kernels/test_capabilities.py`, which fails where a
check gives something else than this page says. **yes**: the method does it. **no**: it refuses with an error, for the
numbered reason below; with PEFT's own methods (lora, dora, ln_tuning) the reason is what PEFT does instead. **–**: the
question makes no sense there. **part**: it depends on the layer type.
"""


def says(method: str, capability: str, layer: str) -> str:
    """What the table says in one cell: "yes", `NO_MEANING`, or "no: " and the reason."""
    lack = METHODS[method].lack(capability, LAYERS[layer])
    return "yes" if lack is None else lack.verdict


def cells() -> Iterator[tuple[str, str, str]]:
    """Method, layer type and capability of every cell that has a check."""
    for method in METHODS:
        for layer in LAYERS:
            for capability in CAPABILITIES:
                if says(method, capability, layer) != NO_MEANING:
                    yield method, layer, capability


def prove(method: str, layer: str, capability: str) -> None:
    """Run one cell's check: it passes where the table says yes, and raises the reason where it says no."""
    case = Case(METHODS[method], LAYERS[layer])
    lack = case.method.lack(capability, case.layer)
    if lack is None:
        quiet(CAPABILITIES[capability], case)
        return
    errors = (ValueError, TypeError, NotImplementedError) if case.method.own else (Exception, pytest.fail.Exception)
    with pytest.raises(errors, match=lack.match):
        quiet(CAPABILITIES[capability], case)


def render() -> str:
    """The page."""
    reasons: dict[str, int] = {}

    def cell(verdict: str) -> str:
        if not verdict.startswith("no: "):
            return verdict
        return f"no [{reasons.setdefault(verdict.removeprefix('no: '), len(reasons) + 1)}]"

    lines = [HEADER, "## All methods", "", *_head("", METHODS)]
    lines += [_row(name, [cell(_summary(method, name)) for method in METHODS]) for name in CAPABILITIES]
    for method in METHODS:
        attached = [layer for layer in LAYERS if says(method, "attach", layer) == "yes"]
        refused = [layer for layer in LAYERS if says(method, "attach", layer).startswith("no")]
        lines += ["", f"## {method}", "", *_head("", attached)]
        lines += [_row(name, [cell(says(method, name, layer)) for layer in attached]) for name in CAPABILITIES]
        if refused:
            named = [f"{layer} ({cell(says(method, 'attach', layer))})" for layer in refused]
            lines += ["", f"Refuses to be attached to: {', '.join(named)}."]
    lines += ["", "## Reasons", "", *(f"{number}. {reason}" for reason, number in reasons.items()), "", "## Checks", ""]
    lines += [f"- **{name}**: {_first_line(check.__doc__)}" for name, check in CAPABILITIES.items()]
    return "\n".join(lines) + "\n"


def _summary(method: str, capability: str) -> str:
    """The one word (or refusal) that holds on all layer types on which the question makes sense."""
    layers = [layer for layer in LAYERS if capability == "attach" or says(method, "attach", layer) == "yes"]
    found = dict.fromkeys(says(method, capability, layer) for layer in layers)
    found.pop(NO_MEANING, None)
    return NO_MEANING if not found else next(iter(found)) if len(found) == 1 else "part"


def _head(corner: str, names: object) -> list[str]:
    columns = list(names)  # type: ignore[call-overload]
    return [_row(corner, columns), "|" + "---|" * (len(columns) + 1)]


def _row(name: str, found: list[str]) -> str:
    return f"| {' | '.join([name, *found])} |"


def _first_line(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())
