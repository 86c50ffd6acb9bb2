"""A number for every layer, as bars in the order of the layers; all of it is told again in `layer_table`."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT, TOP, BOTTOM, LEFT = 520.0, 130.0, 14.0, 20.0, 46.0
_LABEL = 44.0  # units that the name of a block needs


def layer_strip(title: str, finding: str, values: Sequence[tuple[str, float | None]], unit: str = "") -> str:
    """Bars from zero; a layer without a value has none.

    Args:
        values: layer and number, in the model's order.
        unit: `%` has shares written as such.
    """
    known = [value for _, value in values if value is not None]
    if not known:
        return ""
    most = max(known) or 1.0
    step = (WIDTH - LEFT) / len(values)
    inner = HEIGHT - TOP - BOTTOM
    parts = [
        f'<line x1="{LEFT}" x2="{WIDTH}" y1="{TOP}" y2="{TOP}" stroke="var(--line)"/>'
        f'<text x="{LEFT - 7}" y="{TOP + 4}" text-anchor="end">{written(most, unit)}</text>'
        f'<text x="{LEFT - 7}" y="{TOP + inner + 4}" text-anchor="end">0</text>'
    ]
    for place, (name, value) in enumerate(values):
        if value is not None:
            tall = inner * value / most
            parts.append(
                f'<rect x="{LEFT + step * place:.2f}" y="{TOP + inner - tall:.2f}" width="{max(step * 0.82, 0.6):.2f}" '
                f'height="{tall:.2f}" fill="var(--accent)"><title>{escape(name)}: {written(value, unit)}</title></rect>'
            )
    parts.append(f'<line x1="{LEFT}" x2="{WIDTH}" y1="{TOP + inner}" y2="{TOP + inner}" stroke="var(--edge)"/>')
    parts.append(_blocks([name for name, _ in values], step))
    return (
        f'<figure class="figure"><h3>{escape(title)}</h3><svg class="plot" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" '
        f'role="img" aria-label="{escape(f"{title}. {finding}")}">{"".join(parts)}</svg></figure>'
    )


def written(value: float, unit: str = "") -> str:
    """With sensible digits."""
    return f"{100 * value:.3g} %" if unit == "%" else f"{value:.3g}"


def block_of(name: str) -> str:
    """The part of a layer's name up to its first number: `blocks.3`."""
    found = re.match(r"(.*?\d+)(\.|_|$)", name)
    return found[1] if found else name.partition(".")[0]


def _blocks(names: Sequence[str], step: float) -> str:
    """Names below the bars where a block begins, as many as there is room for."""
    parts, free = [], 0.0
    for place, name in enumerate(names):
        at, block = LEFT + step * place, block_of(name)
        if (place == 0 or block_of(names[place - 1]) != block) and at >= free:
            short = re.sub(r"^.*?([A-Za-z]+)[._](\d+)$", r"\1 \2", block)
            parts.append(f'<text x="{at:.1f}" y="{HEIGHT - 5}">{escape(short[:14])}</text>')
            free = at + max(_LABEL, 6.5 * min(len(short), 14))
    return "".join(parts)


def layer_table(layers: Sequence[Mapping[str, Any]], changes: Sequence[Mapping[str, Any]]) -> str:
    """All layers of the file with their change, folded."""
    by_name = {change["name"].removesuffix(".weight"): change for change in changes}
    rows = []
    for layer in layers:
        change = by_name.get(layer["name"], {})
        cells = (
            f"{layer['parameters']:,}",
            _cell(layer["rank"]),
            _cell(layer["norm"], "the layer holds NaN or infinity"),
            _cell(change.get("norm", layer["change"]), "the file alone does not tell it"),
            _cell(change.get("relative"), "the weight before is not known", "%"),
            _cell(change.get("effective_rank"), "only a change that is a matrix has one"),
        )
        rows.append(
            f'<tr><th scope="row">{escape(layer["name"])}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        )
    heads = ("layer", "parameters", "rank", "norm", "norm of the change", "of the weight", "effective rank")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        '<details data-key="layers"><summary>Layers as a table</summary><div class="scroll" tabindex="0">'
        f'<table class="data"><caption class="hidden">Layers of the adapter</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def _cell(value: float | None, why: str = "it has no meaning here", unit: str = "") -> str:
    return f'<span title="{escape(why)}">—</span>' if value is None else written(value, unit)
