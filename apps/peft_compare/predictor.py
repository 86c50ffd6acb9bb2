"""What the adapted models of a finished run see in a picture, in a process that keeps the last run's models loaded.

    python -m peft_compare.predictor        a line {"run", "picture"} in, a line of answers out

The server holds one such process; a picture or a model that ends it, or takes too long, costs one answer.
"""

import base64
import io
import json
import queue
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from peft_compare.refusals import RefusedError
from peft_compare.runs import Run

PATIENCE = 120.0  # seconds; the first answer of a run loads its models
PIXELS = 1024 * 1024
MOST_BYTES = 2 * 2**20
TOP = 5
PNG = "data:image/png;base64,"


@dataclass(frozen=True)
class Answer:
    """What one method says: its most likely classes with their probabilities."""

    method: str
    top: list[tuple[str, float]]


class Predictor:
    """One process for all visitors, started when it is first asked."""

    def __init__(self, patience: float = PATIENCE):
        self.patience = patience
        self.asking = threading.Lock()
        self.process: subprocess.Popen[str] | None = None
        self.lines: queue.Queue[str] = queue.Queue()

    def ask(self, run: Run, picture: str) -> list[Answer]:
        """The answers of all finished methods to a picture, given as the `data:` address of a PNG.

        Raises:
            RefusedError: it is no such picture, nothing is finished, or the process did not answer.
        """
        if not picture.startswith(PNG) or len(picture) > MOST_BYTES:
            raise RefusedError("that is no picture of at most 1 megapixel")
        with self.asking:
            line = self._exchange(json.dumps({"run": str(run.path), "picture": picture}))
        answer = json.loads(line)
        if "refused" in answer:
            raise RefusedError(answer["refused"])
        return [Answer(one["method"], [(name, share) for name, share in one["top"]]) for one in answer["answers"]]

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _exchange(self, line: str) -> str:
        if self.process is None or self.process.poll() is not None:
            self._start()
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
            said = self.lines.get(timeout=self.patience)
        except (OSError, queue.Empty):
            said = ""
        if not said:
            self.close()
            raise RefusedError("the models did not answer; try again, or look into the run's log")
        return said

    def _start(self) -> None:
        self.lines = queue.Queue()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "peft_compare.predictor"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=_read, args=(self.process.stdout, self.lines), daemon=True).start()


def _read(stream: IO[str], lines: "queue.Queue[str]") -> None:
    for line in stream:
        lines.put(line)
    lines.put("")  # it has ended


def main() -> None:
    """Answer line by line, until the server is gone."""
    kept: tuple[str, list[Any]] = ("", [])
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if kept[0] != asked["run"]:
                kept = ("", [])
                kept = (asked["run"], load(Path(asked["run"])))
            answer: dict[str, Any] = {"answers": [see(asked["picture"], *loaded) for loaded in kept[1]]}
        except (RefusedError, OSError, ValueError, RuntimeError) as error:
            answer = {"refused": " ".join(str(error).split())}
        print(json.dumps(answer), flush=True)


def load(path: Path) -> list[Any]:
    """Method, model, transform and classes of every method whose first seed is finished."""
    from peft_runs.adapted import load_adapted
    from peft_runs.families import VISION
    from peft_runs.find import load_recipe
    from peft_runs.order import seed_generators
    from peft_runs.read import read_recipe
    from peft_runs.run_folder import RunFolder

    tasks, found = VISION.tasks(), []
    for place in sorted((path / "out").glob("*/seed-*/adapter")):
        folder = RunFolder(place.parent)
        method = folder.path.parent.name
        if any(loaded[0] == method for loaded in found):
            continue
        recipe = read_recipe(load_recipe(folder.recipe), [], tasks)
        seed_generators(recipe.run.seed)
        task: Any = tasks[recipe.task](recipe.model, recipe.data, recipe.run.seed)
        model = load_adapted(task.build_model(), folder.adapter).eval()
        found.append((method, model, task.plain_training_data(model).transform, list(map(str, task.classes))))
    if not found:
        raise RefusedError("no method of this run is finished with its adapter beside it")
    return found


def see(picture: str, method: str, model: Any, transform: Any, classes: list[str]) -> dict[str, Any]:
    """The most likely classes by one model."""
    import torch
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(picture.removeprefix(PNG), validate=True)), formats=["PNG"]) as opened:
        if opened.width * opened.height > PIXELS:
            raise RefusedError("the picture has more than 1 megapixel")
        image = transform(opened.convert("RGB"))
    with torch.inference_mode():
        shares = model(image[None]).softmax(-1)[0]
    top = shares.topk(min(TOP, len(classes)))
    return {
        "method": method,
        "top": [
            (classes[place], share) for place, share in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ],
    }


if __name__ == "__main__":
    main()
