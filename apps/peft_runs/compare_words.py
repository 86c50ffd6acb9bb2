"""How a comparison's figures are written, the same in the terminal, the report and the model cards."""

from rich import filesize

SPACE = "\u00a0"  # a number stays on the line of its unit
NONE = "—"


def count(number: int | None) -> str:
    """`62,730`."""
    return NONE if number is None else f"{number:,}"


def size(number: int | None) -> str:
    """`251.9 kB`, powers of ten."""
    return NONE if number is None else filesize.decimal(number).replace(" ", SPACE).replace("bytes", "B")


def metric(mean: float | None, deviation: float | None, share: bool) -> str:
    """`95.2 %`, with the deviation over seeds `95.2 ± 0.4 %`; a figure that is no share with four digits."""
    if mean is None:
        return NONE
    if not share:
        return f"{mean:.4g}" + ("" if deviation is None else f" ± {deviation:.2g}")
    spread = "" if deviation is None else f"{SPACE}±{SPACE}{100 * deviation:.1f}"
    return f"{100 * mean:.1f}{spread}{SPACE}%"


def is_share(name: str) -> bool:
    """Whether the metric of this name is a share of 1, written in percent."""
    return name == "accuracy"


def milliseconds(seconds: float | None) -> str:
    """`84.1 ms`: three digits."""
    if seconds is None:
        return NONE
    value = 1000 * seconds
    digits = max(0, 2 - len(str(int(value))) + 1)
    return f"{value:,.{digits}f}{SPACE}ms"


def difference(value: float | None) -> str:
    """`2.4e-06`, or `0` for none at all."""
    if value is None:
        return NONE
    return "0" if value == 0 else f"{value:.1e}"


def duration(seconds: float) -> str:
    """`48 s`, `3 min 20 s`."""
    whole = round(seconds)
    return f"{whole}{SPACE}s" if whole < 60 else f"{whole // 60}{SPACE}min {whole % 60}{SPACE}s"
