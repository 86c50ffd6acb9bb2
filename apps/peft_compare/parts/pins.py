"""Rows of a table that are pinned by a click on their names, two at most: what is looked at more closely."""

from collections.abc import Sequence
from html import escape

MOST = 2

# The buttons themselves keep which are pinned and in which order, so that the focus stays where it is.
PINS = f"""
element.addEventListener('click', (event) => {{
  const button = event.target.closest('[data-pin]');
  if (!button) return;
  const on = [...element.querySelectorAll('[data-pin][aria-pressed="true"]')];
  on.sort((a, b) => (a.dataset.order || 0) - (b.dataset.order || 0));
  const rest = on.filter((one) => one !== button);
  const chosen = on.includes(button) ? rest : [...rest.slice({1 - MOST}), button];
  element.querySelectorAll('[data-pin]').forEach((one) => {{
    one.setAttribute('aria-pressed', String(chosen.includes(one)));
    one.dataset.order = chosen.indexOf(one);
  }});
  trigger('pin', {{ methods: chosen.map((one) => one.dataset.pin) }});
}});
"""


def pin(name: str, among: Sequence[str], inner: str) -> str:
    """The button in a row's head; the name alone where there is nothing to look at."""
    if name not in among:
        return inner
    about = f"Look closer at {name}: what it takes for what; two rows are held against each other"
    return (
        f'<button type="button" class="pin" data-pin="{escape(name)}" aria-pressed="false" '
        f'title="{escape(about)}">{inner}</button>'
    )
