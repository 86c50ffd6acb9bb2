"""Where the parameters of each method went: blocks down, kinds of modules across."""

from collections.abc import Mapping
from html import escape
from typing import Any

from peft_compare.look import glyph, scroll


def heat(where: Mapping[str, Any], methods: list[str]) -> str:
    """A map for each method; shades go by the share of the method's own largest cell."""
    maps = [_map(where, name) for name in methods if name in where.get("cells", {})]
    if not maps:
        return ""
    return f'<div class="part"><h3>Where the parameters went</h3><div class="side-by-side">{"".join(maps)}</div></div>'


def _map(where: Mapping[str, Any], method: str) -> str:
    cells = where["cells"][method]
    most = max((value for line in cells for value in line), default=0) or 1
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in where["columns"])
    rows = ""
    for label, line in zip(where["rows"], cells, strict=True):
        inner = "".join(f'<td style="--share:{value / most:.3f}">{_short(value)}</td>' for value in line)
        rows += f'<tr><th scope="row">{"outside" if label == "–" else escape(label)}</th>{inner}</tr>'
    total = sum(value for line in cells for value in line)
    table = (
        f'<table class="heat"><caption class="quiet">{glyph(method)}{escape(method)}: {total:,} numbers in its file'
        "</caption>"
        f'<thead><tr><th scope="col"><span class="hidden">block</span></th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )
    return scroll(f"Where {method} trains", table)


def _short(value: int) -> str:
    if not value:
        return ""
    return f"{value / 1000:.3g}k" if value >= 1000 else str(value)
