"""What the Adapters page shows of a look at an adapter, drawn from what lies on the disk."""

import json
from collections.abc import Mapping
from typing import Any

from peft_compare.inspecting import CARD
from peft_compare.look import notice
from peft_compare.parts.adapter_card import adapter_card
from peft_compare.parts.downloads import command_line
from peft_compare.runs import Run

STAGES = {
    None: "Reading the file",
    "exports": "Writing it in each format",
    "changes": "Measuring what it does to the weights",
    "done": "Done",
}


def card_of(run: Run) -> Mapping[str, Any] | None:
    """What is known so far."""
    try:
        return json.loads((run.out / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def watch(run: Run, position: int | None) -> str:
    """How far the look is; nothing once it is done."""
    state = run.state
    if state == "queued":
        place = f"number {position} in the queue" if position else "about to begin"
        return notice("kept", "Waiting", f"{place}.")
    if state == "running":
        stage = (card_of(run) or {}).get("stage")
        return f'<p class="quiet" role="status">{STAGES[stage]} …</p>'
    if state == "done":
        return ""
    end = run.end
    said = end.said if end is not None else ""
    log = run.log.read_text(encoding="utf-8", errors="replace")[-4000:] if run.log.exists() else ""
    after = " What was found before that is below." if card_of(run) else " Nothing was loaded. Give another file."
    title = "Cancelled." if state == "cancelled" else "This cannot be looked at."
    return notice("error", title, f"{said.rstrip('.')}.{after}", log if "Traceback" in log else "")


def shown(run: Run) -> str:
    """The card, and the command that tells the same."""
    card = card_of(run)
    if card is None:
        return ""
    words = ("inspect", "ADAPTER", *run.request.words[2:])
    return adapter_card(card, run.id) + command_line(run.request.program, words, run.id)
