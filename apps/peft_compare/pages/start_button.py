"""The button that starts a comparison, with how long it will take, and why it was not started."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from peft_compare import step_times
from peft_compare.frame import HIDDEN, Frame
from peft_compare.look import notice
from peft_compare.refusals import RefusedError
from peft_compare.step_times import Estimate, estimate
from peft_runs.compare_words import duration
from peft_runs.errors import UsageError
from peft_runs.families import Family

Words = Callable[..., list[str]]  # from the form's values to the command line; raises RefusedError


@dataclass
class Start:
    """The button, the place of its errors, and of the estimate with a button of its own."""

    button: gr.Button
    failed: gr.HTML
    about: gr.HTML
    timing: gr.Button

    def estimates(
        self, frame: Frame, family: Family, words: Words, inputs: Sequence[Any], changes: Sequence[Any]
    ) -> None:
        """Say how long it will take whenever one of the fields has changed."""

        def say(*values: Any) -> tuple[str, Any]:
            try:
                found = estimate(frame.settings.runs, family, words(*values))
            except (RefusedError, UsageError, ValueError):
                return "", gr.Button(visible=False)  # the form says it when it is sent
            return told(found), gr.Button(visible=found.seconds is None)

        def time(*values: Any) -> Iterator[tuple[str, Any]]:
            yield '<p class="quiet" role="status">Timing a few steps of each method…</p>', gr.Button(visible=False)
            try:
                if frame.queue.training():
                    raise RefusedError("something trains right now, which would slow them down: try again when it ends")
                step_times.timed(frame.settings.runs, family, words(*values))
            except RefusedError as refusal:
                yield notice("error", "Not timed.", f"{refusal}."), gr.Button(visible=True)
                return
            yield say(*values)

        shown = [self.about, self.timing]
        assert frame.tab is not None
        events = [frame.tab.select, *(field.change for field in changes)]
        gr.on(events, say, inputs, shown, trigger_mode="always_last", **HIDDEN)
        self.timing.click(time, inputs, shown, **{**HIDDEN, "queue": True, "concurrency_limit": 1})


def build(key: str, named: str = "") -> Start:
    """The fields, one below another.

    Args:
        key: begins the names of the page's elements.
        named: of the button, where it has another.
    """
    failed = gr.HTML(elem_id=f"{key}not-started")
    button = gr.Button("Run it yourself", variant="primary", elem_id=named or f"{key}start")
    about = gr.HTML(elem_id=f"{key}estimate")
    timing = gr.Button("Time a few steps", size="sm", visible=False, elem_id=f"{key}time-steps")
    return Start(button, failed, about, timing)


def told(found: Estimate) -> str:
    """The estimate in words."""
    if found.seconds is None:
        return '<p class="quiet">How long it takes is not known: nothing like it has run on this machine yet.</p>'
    more = "" if found.whole else ", and what loading and checking take"
    like = f"; {escape(', '.join(found.guessed))} taken to be like the others" if found.guessed else ""
    return (
        f'<p class="quiet">≈ {duration(found.seconds)}{more}, by steps measured on this machine{like}. '
        "It can wait for others.</p>"
    )
