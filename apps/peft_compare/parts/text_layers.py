"""The layers that read the text, in the order in which they run: height is the score, a click patches, shift adds."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

# A selection is kept by the buttons themselves, so that the focus stays where it is.
SCRIPT = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-layer]');
  if (!button) return;
  const all = [...element.querySelectorAll('[data-layer]')];
  const on = (one) => one.getAttribute('aria-pressed') === 'true';
  if (event.shiftKey) button.setAttribute('aria-pressed', String(!on(button)));
  else all.forEach((one) => one.setAttribute('aria-pressed', String(one === button)));
  const layers = all.filter(on).map((one) => Number(one.dataset.layer));
  const total = Number(element.querySelector('.layers').dataset.total);
  const own = all.filter(on).reduce((sum, one) => sum + Number(one.dataset.parameters), 0);
  const said = element.querySelector('.share');
  said.textContent = layers.length
    ? `Layer${layers.length > 1 ? 's' : ''} ${layers.join(', ')}: ${own.toLocaleString('en')} parameters of keys and ` +
      `values, ${(100 * own / total).toPrecision(2)} % of the denoiser`
    : 'No layer is chosen.';
  trigger('patch', { layers });
});
"""


def text_layers(layers: Sequence[Mapping[str, Any]], total: int, chosen: Sequence[int], measure: str | None) -> str:
    """A button a layer.

    Args:
        layers: each with `index`, `name`, `parameters` and, once they are searched, `score`.
        total: parameters of the denoiser.
        measure: what the score is.
    """
    scores = [layer["score"] for layer in layers if layer.get("score") is not None]
    least, most = min([*scores, 0.0]), max([*scores, 1e-9])
    buttons = ""
    for layer in layers:
        score = layer.get("score")
        share = 0.0 if score is None else (score - least) / (most - least)
        words = f"layer {layer['index']}, {layer['name']}" + ("" if score is None else f", {measure} {score:.2f}")
        buttons += (
            f'<li><button type="button" data-layer="{layer["index"]}" data-parameters="{layer["parameters"]}" '
            f'aria-pressed="{str(layer["index"] in chosen).lower()}" aria-label="{escape(words)}" '
            f'title="{escape(words)}" style="--share:{share:.3f}"><span class="bar"></span>'
            f'<span class="number">{layer["index"]}</span></button></li>'
        )
    own = sum(layer["parameters"] for layer in layers if layer["index"] in chosen)
    numbers = ", ".join(map(str, chosen))
    said = (
        f"Layer{'s' if len(chosen) > 1 else ''} {numbers}: {own:,} parameters of keys and values, "
        f"{100 * own / total:.2g} % of the denoiser"
        if chosen
        else "No layer is chosen."
    )
    height = (
        f"Height: {escape(measure or 'score')} when that layer alone reads the new word."
        if scores
        else "Not searched yet."
    )
    return (
        f'<div class="layers" data-total="{total}"><ul aria-label="Layers that read the text, in the order in which '
        f'they run">{buttons}</ul><p class="quiet">{height} Click patches a layer, shift-click adds one.</p>'
        f'<p class="share" role="status">{said}</p></div>'
    )
