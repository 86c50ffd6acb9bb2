"""What programs may call by name, with `gradio_client`: the same as the Vision and the Diffusion page do.

client.predict("linear_probe,lora", api_name="/start")       {"run": ID, "state": "queued", "position": 1, ...}
client.predict("lora,sara", api_name="/start_diffusion")     the same for a pipeline
client.predict(ID, api_name="/state")                        how far it is
client.predict(ID, api_name="/result")                       the record, as in results.json, once it is done
client.predict(ID, "red heart", api_name="/draw")            pictures by the base model and by each adapter of the run
client.predict(ID, api_name="/cancel")
"""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import gradio as gr

from peft_compare import diffusion_request as diffusion
from peft_compare.course import course_of
from peft_compare.diffusion_view import adapters_of, pipeline_of
from peft_compare.drawing.requests import Draw, Line, Worn
from peft_compare.frame import Frame
from peft_compare.guard import owner_of
from peft_compare.refusals import RefusedError
from peft_compare.runs import Run
from peft_compare.vision_request import Choice, name_of, words_of
from peft_compare.vision_view import results_of
from peft_runs.errors import RunError, UsageError, unknown
from peft_runs.read import split_words

# Settings of the shared recipe or of one method's; nothing that names a file.
SETTABLE = re.compile(r"(\w+\.)?(method\.\w+|optim\.\w+|model\.pretrained|data\.(train|test)_size|run\.precision)")


def offer(frame: Frame) -> None:
    """Add the functions to the page's own."""

    def start(
        methods: str,
        model: str = "vit_mini",
        epochs: int = 7,
        seeds: int = 1,
        budget: int = 0,
        settings: str = "",
        request: gr.Request = None,  # type: ignore[assignment]
    ) -> dict[str, Any]:
        """Compare methods (A,B,...) on the embedded digits; `budget` 0 leaves each method its own size; `settings` are
        further words of the command line, such as `--lora.method.r 4`."""
        with told():
            extra = settable(settings)
            frame.settings.check_model(model)
            choice = Choice(listed(methods), model, epochs=epochs, seeds=seeds, budget=budget or None, extra=extra)
            words = words_of(choice)
            run = frame.queue.add("vision", name_of(choice), "vision-peft", words, owner_of(request.cookies))
        return told_of(run)

    def start_diffusion(
        methods: str,
        task: str = "style",
        pipeline: str = "mini_sd",
        epochs: int = 40,
        seeds: int = 1,
        judged: int = 32,
        budget: int = 0,
        settings: str = "",
        request: gr.Request = None,  # type: ignore[assignment]
    ) -> dict[str, Any]:
        """Compare methods (A,B,...) on a task (style, subject, one_step, edges, colors, spelling) with the pictures
        that come with the package; `judged` pictures are drawn and measured."""
        with told():
            extra = settable(settings)
            frame.settings.check_model(pipeline)
            choice = diffusion.Choice(
                listed(methods),
                task,
                pipeline,
                epochs=epochs,
                seeds=seeds,
                judged=judged,
                budget=budget or None,
                extra=extra,
            )
            words, name = diffusion.words_of(choice), diffusion.name_of(choice)
            run = frame.queue.add("diffusion", name, "diffusion-peft", words, owner_of(request.cookies))
        return told_of(run)

    def draw(
        run: str, prompts: str, seeds: str = "0,1", steps: int = 12, guidance: float = 4.0, mix: str = ""
    ) -> dict[str, Any]:
        """The same prompts (one a line) and seeds by the base model and each adapter of a run, or, with a `mix` such as
        `lora=0.5,sara=1`, by the base model and these adapters together. `rows` hold PNG in base64."""
        found = known(run)
        with told():
            adapters = {one.method: one for one in adapters_of(found)}
            if not adapters:
                raise RefusedError("the run has no adapters to draw with yet")
            rows = [one.line() for one in adapters.values()]
            if mix:
                worn = []
                for part in listed(mix):
                    name, _, weight = part.partition("=")
                    if name not in adapters:
                        raise unknown("adapter", name, adapters)
                    worn.append(Worn(str(adapters[name].folder), float(weight or 1)))
                rows = [Line(mix, tuple(worn))]
            asked = Draw(
                pipeline_of(found),
                (Line("base"), *rows),
                tuple(line.strip() for line in prompts.splitlines() if line.strip()),
                tuple(map(int, listed(seeds))),
                steps,
                guidance,
            )
            return frame.drawer.ask(asked)

    def state(run: str) -> dict[str, Any]:
        """How far a run is."""
        return told_of(known(run))

    def result(run: str) -> dict[str, Any]:
        """The record of a finished comparison."""
        with told():
            results = results_of(known(run))
            if results is None:
                raise RefusedError("the run has no results yet")
            return results.as_dict()

    def cancel(run: str, request: gr.Request) -> dict[str, Any]:
        """Stop a run of one's own; its last checkpoint stays."""
        found = known(run)
        with told():
            if found.request.owner not in ("", owner_of(request.cookies)):
                raise RefusedError("this run was started in another browser")
            frame.queue.cancel(found)
        return told_of(found)

    def known(run_id: str) -> Run:
        found = frame.find(run_id)
        if found is None:
            raise gr.Error("there is no such run", print_exception=False)
        return found

    def told_of(run: Run) -> dict[str, Any]:
        end, course = run.end, course_of(run)
        return {
            "run": run.id,
            "state": run.state,
            "position": frame.queue.position(run),
            "said": end.said if end else "",
            "command": shlex.join([run.request.program, *run.request.words]),
            "lanes": [asdict(lane) for lane in course.lanes],
            "seconds_left": course.seconds_left,
        }

    for function in (start, start_diffusion, state, result, draw, cancel):
        gr.api(function, api_name=function.__name__, concurrency_limit=4)


def listed(words: str) -> tuple[str, ...]:
    """`A, B` → A and B."""
    return tuple(word.strip() for word in words.split(",") if word.strip())


def settable(settings: str) -> tuple[str, ...]:
    """Further words of a command line.

    Raises:
        RefusedError: one of them is not a program's to set.
    """
    words = shlex.split(settings)
    for key, _ in split_words(words):
        if not SETTABLE.fullmatch(key):
            raise RefusedError(f"--{key} cannot be set from here")
    return tuple(words)


@contextmanager
def told() -> Iterator[None]:
    """Within, what is refused becomes the sentence that the caller gets."""
    try:
        yield
    except (RefusedError, UsageError, RunError, ValueError) as error:
        raise gr.Error(str(error), print_exception=False) from None
