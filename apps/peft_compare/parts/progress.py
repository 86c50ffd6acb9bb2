"""A row for each method of a comparison that goes on: how far it is, what it has reached, how long it will take."""

from html import escape

from peft_compare.course import Course, Lane
from peft_compare.look import glyph
from peft_runs.compare_words import duration, is_share
from peft_runs.compare_words import metric as as_words
from peft_runs.figure_style import shade

STAGES = {"waiting": "waiting", "starting": "starting", "checking": "checking what was saved", "stopped": "stopped"}


def lanes(course: Course) -> str:
    """The rows; several seeds of one method stand below one another."""
    seeds = len({lane.seed for lane in course.lanes}) > 1
    rows = "".join(_row(lane, course, seeds) for lane in course.lanes)
    return f'<ul class="lanes" aria-label="Progress of each method">{rows}</ul>'


def _row(lane: Lane, course: Course, seeds: bool) -> str:
    name = f"{lane.method}, seed {lane.seed}" if seeds else lane.method
    percent = round(100 * lane.share)
    return (
        f'<li class="lane"><span class="name">{glyph(lane.method)}{escape(name)}</span>'
        f'<progress max="100" value="{percent}" aria-label="{escape(name)}" '
        f'style="--colour:var(--method-{shade(lane.method)})">{percent} %</progress>'
        f'<span class="said">{escape(_said(lane, course))}</span></li>'
    )


def _said(lane: Lane, course: Course) -> str:
    reached = None if lane.metric is None else as_words(lane.metric, None, is_share(course.metric))
    if lane.stage == "done":
        return f"done, {reached}" if reached else "done"
    parts = []
    if lane.stage in STAGES:
        parts.append(STAGES[lane.stage])
    if lane.stage in ("training", "stopped") and lane.epoch:
        parts.append(f"epoch {lane.epoch}" + (f"/{course.epochs}" if course.epochs else ""))
    if reached:
        parts.append(reached)
    if lane.seconds_left is not None:
        parts.append(f"{duration(lane.seconds_left)} left")
    return " · ".join(parts)
