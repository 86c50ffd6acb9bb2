"""The frame around all pages: header, the list of runs, the tabs, and the run that the address names.

A page is a module below `pages/` with NAME (as it stands in the address), TITLE and `build(frame)`. In `build` it lays
out its components, and hears of the open run through `frame.opened.change` and, while something goes on,
`frame.clock.tick`. Both events carry no more than the run's id; everything else is read from the disk, so that a
reload, a second browser and another server show the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import gradio as gr

from peft_compare import look
from peft_compare.drawing.drawer import Drawer
from peft_compare.files import find_example
from peft_compare.guard import owner_of
from peft_compare.parts.run_list import CLICKS, run_list
from peft_compare.queue import Queue
from peft_compare.refusals import RefusedError
from peft_compare.runs import ENDED, Run, Runs
from peft_compare.settings import Settings

EXAMPLES = Path(__file__).resolve().parent / "examples"
LOOK_EVERY, LOOK_RARELY = 1.0, 15.0  # seconds between two looks at the disk: while a run of this browser goes on, else

GROWING = ("*/seed-*/metrics.jsonl", "*/seed-*/*.json", "*.json")  # files of a comparison that change while it goes on

# Events that a page's own functions need no place for in the public interface.
HIDDEN: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
SAYING: dict[str, Any] = {**HIDDEN, "queue": True}  # what `gr.Warning` says comes through Gradio's queue alone


@dataclass
class Frame:
    """What a page stands on.

    Attributes:
        opened: the id of the open run, hidden; empty shows the page's example.
        clock: ticks while something goes on.
        listed: the list of runs; pages that start a run write it anew with `frame.list_of`.
        drawer: asks the process that draws.
        blocks: for what happens when the page is loaded.
        tab: that of the page that is being built, for what happens when somebody turns to it.
        closing: what a page wants done when the server ends.
    """

    settings: Settings
    runs: Runs
    queue: Queue
    drawer: Drawer
    opened: gr.Textbox
    clock: gr.Timer
    listed: gr.HTML
    blocks: gr.Blocks
    tab: gr.Tab | None = None
    closing: list[Callable[[], None]] = field(default_factory=list)

    def find(self, run_id: str) -> Run | None:
        """The run of this id: a visitor's, or one that comes with the app."""
        return find_example(EXAMPLES, run_id) or self.runs.find(run_id)

    def list_of(self, request: gr.Request, opened: str, deleted: Run | None = None) -> str:
        """The list of this browser's runs."""
        return run_list(self.runs.of(owner_of(request.cookies)), opened, deleted)

    def cancel(self, request: gr.Request, run_id: str) -> None:
        """End a run for whom it belongs to; anybody else is told, in events with `SAYING`."""
        run = self.runs.find(run_id)
        if run is not None and run.request.owner in ("", owner_of(request.cookies)):
            self.queue.cancel(run)
        elif run is not None:
            gr.Warning("This run was started in another browser; only that one can cancel it.")

    def started(self, request: gr.Request, start: Callable[[], Run], refused: str = "Not started.") -> tuple[Any, ...]:
        """What a page writes when a run was put at the end of the queue, or was not: the place of its errors, `opened`,
        `listed` and `clock`."""
        try:
            run = start()
        except RefusedError as refusal:
            return look.notice("error", refused, f"{refusal}."), gr.skip(), gr.skip(), gr.skip()
        return "", run.id, self.list_of(request, run.id), self.pace(request, run.id)

    def key_of(self, run: Run) -> str:
        """Changes with everything that a page shows of the run."""
        grown = [f"{path}{_written(path)}" for name in GROWING for path in sorted(run.out.glob(name))]
        drawn = [str(path) for path in sorted(run.out.glob("*/seed-*/samples/*.png"))]
        return "/".join([run.id, run.state, str(self.queue.position(run)), str(hash((*grown, *drawn)))])

    def pace(self, request: gr.Request, opened: str) -> gr.Timer:
        """The clock as fast as this browser needs it."""
        owner = owner_of(request.cookies)
        run = self.find(opened)
        going = any(other.state not in ENDED for other in self.runs.of(owner))
        going = going or (run is not None and run.state not in ENDED)
        return gr.Timer(LOOK_EVERY if going else LOOK_RARELY)


def _written(path: Path) -> int:
    """When a file was last written, in nanoseconds; 0 if it is gone again."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def build(settings: Settings, runs: Runs, queue: Queue, pages: Sequence[ModuleType]) -> Frame:
    """All pages in their frame (`frame.blocks`)."""
    with gr.Blocks(
        title=f"{look.NAME}: compare adapters", fill_width=True, analytics_enabled=False, delete_cache=(600, 3600)
    ) as blocks:
        gr.HTML(
            f'<header class="masthead"><h1>{look.NAME}</h1><p>Which adapter for this task, and what does it do to the '
            'model?</p><button type="button" class="plain-button" data-do="look">Light / dark</button></header>'
        )
        opened = gr.Textbox(visible="hidden", elem_id="opened", label="open run")
        clock = gr.Timer(LOOK_RARELY)
        with gr.Row(elem_classes="frame"):
            with gr.Column(scale=1, min_width=210, elem_id="runs"):
                gr.HTML('<h2 class="move">Your runs</h2>')
                listed = gr.HTML(run_list([], ""), js_on_load=CLICKS)
            with gr.Column(scale=6, min_width=320):
                with gr.Tabs(elem_id="pages") as tabs:
                    drawer = Drawer(threads=1, check=settings.check_model)
                    frame = Frame(settings, runs, queue, drawer, opened, clock, listed, blocks, closing=[drawer.close])
                    for page in pages:
                        with gr.Tab(page.TITLE, id=page.NAME) as tab:
                            frame.tab = tab
                            page.build(frame)
                        tab.select(None, js=f"() => peftTab('{page.NAME}')", **HIDDEN)
        names = [page.NAME for page in pages]
        _wire(blocks, frame, tabs, names)
    return frame


def _wire(blocks: gr.Blocks, frame: Frame, tabs: gr.Tabs, names: Sequence[str]) -> None:
    """What the frame itself does: open, delete, take back, look."""

    def arrive(request: gr.Request) -> tuple[Any, ...]:
        """Show what the address names."""
        asked = dict(request.query_params)
        run = frame.find(asked.get("run", ""))
        page = run.request.page if run is not None else asked.get("tab", "")
        run_id = run.id if run is not None else ""
        selected = gr.Tabs(selected=page) if page in names else gr.skip()
        return selected, run_id, frame.list_of(request, run_id), frame.pace(request, run_id)

    def look_again(opened: str, request: gr.Request) -> tuple[Any, ...]:
        return frame.list_of(request, opened), frame.pace(request, opened)

    def open_run(request: gr.Request, event: gr.EventData) -> tuple[Any, ...]:
        run = frame.find(str(getattr(event, "run", "")))
        if run is None:
            return gr.skip(), gr.skip(), frame.list_of(request, ""), gr.skip()
        return gr.Tabs(selected=run.request.page), run.id, frame.list_of(request, run.id), frame.pace(request, run.id)

    def remove(opened: str, request: gr.Request, event: gr.EventData) -> tuple[Any, ...]:
        run = frame.runs.find(str(getattr(event, "run", "")))
        if run is None or run.request.owner != owner_of(request.cookies):
            return opened, frame.list_of(request, opened)
        try:
            frame.queue.delete(run)
        except RefusedError as refusal:
            gr.Warning(str(refusal))
            return opened, frame.list_of(request, opened)
        still = "" if opened == run.id else opened
        return still, frame.list_of(request, still, deleted=run)

    def restore(opened: str, request: gr.Request, event: gr.EventData) -> str:
        frame.runs.restore(str(getattr(event, "run", "")), owner_of(request.cookies))
        return frame.list_of(request, opened)

    listed, opened, clock = frame.listed, frame.opened, frame.clock
    arrived = blocks.load(arrive, None, [tabs, opened, listed, clock], **HIDDEN)
    arrived.then(None, None, None, js="() => { window.peftArrived = true; }", **HIDDEN)
    clock.tick(look_again, opened, [listed, clock], **HIDDEN)
    listed.open(open_run, None, [tabs, opened, listed, clock], **HIDDEN)
    listed.remove(remove, opened, [opened, listed], **{**HIDDEN, "queue": True})
    listed.restore(restore, opened, listed, **HIDDEN)
    opened.change(None, opened, None, js="(run) => { peftAddress({ run }); }", **HIDDEN)
