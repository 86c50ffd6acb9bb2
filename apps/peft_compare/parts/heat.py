"""Where the parameters of each method went: blocks down, kinds of modules across."""

from collections.abc import Mapping
from html import escape
from typing import Any

from peft_compare.look import glyph, scroll

OUTSIDE = "–"  # the label of the row for what stands outside of blocks


def heat(where: Mapping[str, Any], methods: list[str]) -> str:
    """A map for each method; shades go by the share of the method's own largest cell. Below it, what is outside."""
    shown = [name for name in methods if name in where.get("cells", {})]
    if not shown:
        return ""
    inside = [line for name in shown for row, line in _lines(where, name) if row != OUTSIDE]
    columns = [number for number in range(len(where["columns"])) if any(line[number] for line in inside)]
    maps = "".join(_map(where, name, columns) for name in shown)
    return f'<div class="part"><h3>Where the parameters went</h3><div class="side-by-side">{maps}</div></div>'


def _lines(where: Mapping[str, Any], method: str) -> list[tuple[str, list[int]]]:
    return list(zip(where["rows"], where["cells"][method], strict=True))


def _map(where: Mapping[str, Any], method: str, columns: list[int]) -> str:
    lines, names = _lines(where, method), where["columns"]
    inside = [(row, [line[number] for number in columns]) for row, line in lines if row != OUTSIDE]
    most = max((value for _, line in inside for value in line), default=0) or 1
    heads = "".join(f'<th scope="col">{escape(names[number])}</th>' for number in columns)
    rows = ""
    for label, line in inside:
        cells = "".join(f'<td style="--share:{value / most:.3f}">{_short(value)}</td>' for value in line)
        rows += f'<tr><th scope="row">{escape(label)}</th>{cells}</tr>'
    beside = [
        f"{escape(name)} {_short(value)}"
        for row, line in lines
        for name, value in zip(names, line, strict=True)
        if row == OUTSIDE and value
    ]
    table = (
        f'<table class="heat"><caption class="quiet">{glyph(method)}{escape(method)}: '
        f"{sum(value for _, line in lines for value in line):,} numbers in its file</caption>"
        f'<thead><tr><th scope="col"><span class="hidden">block</span></th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )
    told = f'<p class="quiet">outside of blocks: {", ".join(beside)}</p>' if beside else ""
    return f"<div>{scroll(f'Where {method} trains', table)}{told}</div>"


def _short(value: int) -> str:
    if not value:
        return ""
    return f"{value / 1000:.3g}k" if value >= 1000 else str(value)
