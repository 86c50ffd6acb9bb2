"""What a model takes for what: its confusion matrix, and two models held against each other picture by picture."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from peft_compare.look import glyph, scroll

MOST_CLASSES, MOST_TILES = 40, 12


def confusion(method: str, predictions: Sequence[int], labels: Sequence[int], classes: Sequence[str]) -> str:
    """True classes down, answers across, with the share of each class that is read right."""
    if len(classes) > MOST_CLASSES:
        return (
            f'<p class="quiet">{len(classes)} classes are too many for a matrix here; the results hold all answers.</p>'
        )
    counts = np.zeros((len(classes), len(classes)), dtype=int)
    np.add.at(counts, (np.asarray(labels), np.asarray(predictions)), 1)
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in classes)
    rows = ""
    for place, name in enumerate(classes):
        total = max(1, int(counts[place].sum()))
        cells = "".join(
            f'<td class="{"own" if other == place else ""}" style="--share:{count / total:.3f}">{count or ""}</td>'
            for other, count in enumerate(counts[place])
        )
        right = f"{100 * counts[place, place] / total:.0f} %"
        rows += f'<tr><th scope="row">{escape(name)}</th>{cells}<td style="--share:0">{right}</td></tr>'
    table = (
        '<table class="heat"><caption class="quiet">true class down, answer across</caption><thead><tr><th scope="col">'
        f'<span class="hidden">class</span></th>{heads}<th scope="col">right</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )
    heading = f"<h3>{glyph(method)}{escape(method)}: what it takes for what</h3>"
    return f'<div class="part">{heading}{scroll(f"Confusion matrix of {method}", table)}</div>'


def disagreements(
    names: tuple[str, str],
    answers: tuple[Sequence[int], Sequence[int]],
    labels: Sequence[int],
    classes: Sequence[str],
    tiles: dict[str, int],
    address: str,
) -> str:
    """The pictures that two models answer differently, those first that one of them reads right."""
    first, second, true = (np.asarray(one) for one in (*answers, labels))
    apart = np.flatnonzero(first != second)
    only = [int((((one == true) & (other != true))[apart]).sum()) for one, other in ((first, second), (second, first))]
    order = sorted(apart, key=lambda place: bool(first[place] != true[place] and second[place] != true[place]))
    shown = [int(place) for place in order if place < tiles.get("tiles", 0)][:MOST_TILES]
    entries = "".join(
        f"<li>{tile(place, tiles, address)}<strong>{escape(classes[int(true[place])])}</strong>"
        + "".join(
            f'<br><span class="{"" if answer[place] == true[place] else "wrong"}">{escape(name)}: '
            f"{escape(classes[int(answer[place])])}</span>"
            for name, answer in ((names[0], first), (names[1], second))
        )
        + "</li>"
        for place in shown
    )
    one, other = escape(names[0]), escape(names[1])
    said = f"{len(apart)} of {len(true)} in the test part; {only[0]} only {one} reads right, {only[1]} only {other}."
    pictures = f'<ul class="tiles">{entries}</ul>' if entries else ""
    return f'<div class="part"><h3>Where {one} and {other} disagree</h3><p class="quiet">{said}</p>{pictures}</div>'


def tile(place: int, tiles: Mapping[str, int], address: str, name: str = "") -> str:
    """One picture of the sheet, 48 pixels wide."""
    across, rows = tiles["across"], -(-tiles["tiles"] // tiles["across"])
    x, y = place % across, place // across
    label = escape(name or f"test picture {place}")
    return (
        f'<span class="tile" role="img" aria-label="{label}" style="background-image:url({address});'
        f'background-size:{48 * across}px {48 * rows}px;background-position:-{48 * x}px -{48 * y}px"></span>'
    )
