"""What is known of an adapter's file, in words: the same on the command line and in the app."""

from collections.abc import Iterator, Mapping
from typing import Any

_SHOWN = 5  # names of a list that a line shows
Line = tuple[str, str]


def facts(report: Mapping[str, Any]) -> Iterator[Line]:
    """What the file itself tells, from a report as plain data; what has no meaning is left out."""
    dtypes = ", ".join(f"{count} tensors of {name}" for name, count in report["dtypes"].items())
    lines = {
        "file": report["file"],
        "method": report["method"],
        "keys named as in": report["naming"],
        "base model": report["base_model"],
        "size": f"{report['parameters']:,} parameters, {report['bytes']:,} bytes, {dtypes}",
        "ranks": ", ".join(f"{rank} in {count} layers" for rank, count in report["ranks"].items()),
        "alpha": ", ".join(f"{alpha:g}" for alpha in report["alphas"]),
        "settings": ", ".join(f"{key}={_short(value)}" for key, value in report["settings"].items()),
        "targets": report["targets"],
        "trained in full": _some(report["trained_in_full"]),
    }
    for key, value in report["metadata"].items():
        if key != "format":
            long = len(value) > 200
            lines[f"header: {key}"] = f"{value[:200]} ... ({len(value):,} characters)" if long else value
    return ((name, str(value)) for name, value in lines.items() if value not in (None, "", [], {}))


def fit_lines(fit: Mapping[str, Any] | None) -> Iterator[Line]:
    """How the file fits a model."""
    if not fit:
        return
    yield f"against {fit['model']}", f"{fit['matched']} match, {fit['share']:.0%} of all"
    for name in ("misfits", "missing", "unexpected", "text"):
        if fit[name]:
            yield f"  {name}", f"{len(fit[name])}: {_some(fit[name])}"


def _short(value: Any) -> str:
    """A setting in words; of a long table (SaRA's plan and fingerprints) its first entry."""
    if not isinstance(value, dict):
        return repr(value)
    few = len(value) <= _SHOWN
    shown = [f"{key!r}: {_short(part)}" for key, part in list(value.items())[: _SHOWN if few else 1]]
    return "{" + ", ".join(shown if few else [*shown, f"... {len(value):,} in all"]) + "}"


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
