"""The runs of this browser, the newest first."""

import time
from collections.abc import Sequence
from html import escape

from peft_compare.course import methods_of
from peft_compare.runs import Run

# What a click does: the run's id goes to the event that the button names.
CLICKS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-run]');
  if (!button) return;
  const run = button.dataset.run;
  if (button.dataset.event === 'open') trigger('open', { run });
  if (button.dataset.event === 'remove') trigger('remove', { run });
  if (button.dataset.event === 'restore') trigger('restore', { run });
});
"""


def run_list(runs: Sequence[Run], opened: str, deleted: Run | None = None) -> str:
    """A button for each, and one beside it that deletes."""
    rows = "".join(_row(run, run.id == opened) for run in runs)
    if not rows:
        rows = '<li class="quiet">Your comparisons will stand here. They stay when you close this page.</li>'
    undo = ""
    if deleted is not None:
        undo = (
            f'<div class="undo" role="status"><span>{escape(deleted.request.name)} deleted</span><button type="button" '
            f'class="plain-button" data-event="restore" data-run="{deleted.id}">Undo</button></div>'
        )
    return f'<nav aria-label="Your runs"><ul class="runs">{rows}</ul>{undo}</nav>'


def _row(run: Run, opened: bool) -> str:
    request, state = run.request, run.state
    methods = ", ".join(methods_of(run))
    current = ' aria-current="true"' if opened else ""
    return (
        f'<li class="{"open" if opened else ""}"><button type="button" class="open-run" data-event="open" '
        f'data-run="{run.id}"{current}><span class="name">{escape(request.name)}</span>'
        f'<span class="about"><span class="state-{state}">{state}</span> · {age(time.time() - request.created)}</span>'
        f'<span class="about">{escape(methods)}</span></button>'
        f'<button type="button" class="bin" data-event="remove" data-run="{run.id}" '
        f'aria-label="Delete {escape(request.name)}" title="Delete">✕</button></li>'
    )


def age(seconds: float) -> str:
    """`3 min ago`."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return "just now"
