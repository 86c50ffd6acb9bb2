"""What adapted models draw, in a comparison: each run keeps its pictures, and one process measures them all.

    python -m peft_runs.compare_samples FAMILY OUT FOLDER...          run folders

That process also draws with the base model, from the same seeds, into `OUT/base`, and times what is to be fast.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from peft_runs.adapted import load_adapted
from peft_runs.compare_child import FAMILIES, follow_parent
from peft_runs.durable import whole_folder, write_json
from peft_runs.families import Family
from peft_runs.find import load_recipe
from peft_runs.read import read_recipe
from peft_runs.run_folder import RunFolder
from peft_runs.start import start_accelerator
from peft_runs.whole_file import whole_file

DRAWN, MEASURED = "drawn.safetensors", "drawn.json"
BASE, TEACHER = "base", "teacher"


class Compared(Protocol):
    """Prompts of a task by kind, the pictures that are `wanted` for the `own` (the `data`, or those of a `teacher` from
    the same noise), and what a model draws."""

    prompts: dict[str, list[str]]
    wanted: str

    def real(self) -> Tensor: ...

    def draw(self, model: nn.Module, kind: str) -> Tensor: ...


@runtime_checkable
class Draws(Protocol):
    """A task whose models draw pictures."""

    def compared(self) -> Compared | None: ...


def draw_samples(task: object, model: nn.Module, folder: RunFolder) -> None:
    """Keep in a run's folder what its model draws, if the task's models draw."""
    compared = task.compared() if isinstance(task, Draws) else None
    if compared is not None:
        model.eval()
        save_pictures({kind: compared.draw(model, kind) for kind in compared.prompts}, folder.path)


def save_pictures(drawn: dict[str, Tensor], place: Path) -> None:
    """Keep pictures, uint8 `[N, 3, S, S]` by kind."""
    with whole_file(place / DRAWN) as aside:
        save_file(drawn, aside)


def read_pictures(place: Path) -> dict[str, Tensor]:
    """The pictures in a run's folder or in that of the base model (there with those of the data as `real`)."""
    return load_file(place / DRAWN)


def read_measured(place: Path) -> dict[str, Any] | None:
    """What was measured on the pictures in a folder: `figures`, and with the base model also `prompts` by kind and what
    is `wanted`."""
    path = place / MEASURED
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def main(family: Family, out: Path, folders: list[RunFolder]) -> None:
    """Measure the pictures of every run that has not been, and write the figures into its folder."""
    from peft_runs.one_step_measures import one_step_times

    if read_measured(out / BASE) is None:
        draw_base(family, out, folders[0])
    base, about = read_pictures(out / BASE), read_measured(out / BASE)
    assert about is not None
    for folder in folders:
        if read_measured(folder.path) is None:
            figures = measured(read_pictures(folder.path), base, about["prompts"], about["wanted"])
            if about["wanted"] == TEACHER:
                task, accelerator, model = opened(family, folder)
                load_adapted(model, folder.adapter).to(accelerator.device).eval()
                figures |= one_step_times(task, about["figures"]["teacher_milliseconds"])
            write_json(folder.path / MEASURED, {"figures": figures})


def draw_base(family: Family, out: Path, folder: RunFolder) -> None:
    """Draw and measure with the model that the runs began with; `folder` is one of them."""
    from peft_runs.one_step_measures import one_step_times

    task, accelerator, model = opened(family, folder)
    compared: Compared = task.compared()
    model.to(accelerator.device).eval()
    with whole_folder(out / BASE) as aside:
        drawn = {kind: compared.draw(model, kind) for kind in compared.prompts} | {"real": compared.real()}
        save_pictures(drawn, aside)
        figures = measured(drawn, drawn, compared.prompts, compared.wanted)
        if compared.wanted == TEACHER:
            figures |= one_step_times(task)
        write_json(aside / MEASURED, {"figures": figures, "prompts": compared.prompts, "wanted": compared.wanted})


def opened(family: Family, folder: RunFolder) -> tuple[Any, Accelerator, nn.Module]:
    """The task of a run and its model without what was trained, with all threads."""
    recipe = read_recipe(load_recipe(folder.recipe), ["--run.threads", "null"], family.tasks())
    accelerator = start_accelerator(recipe.run)
    task: Any = family.tasks()[recipe.task](recipe.model, recipe.data, recipe.run.seed)
    if hasattr(task, "use_folder"):
        task.use_folder(folder.path)
    return task, accelerator, task.build_model()


def measured(
    found: Mapping[str, Tensor], base: Mapping[str, Tensor], prompts: Mapping[str, Sequence[str]], wanted: str
) -> dict[str, float]:
    """The figures of pictures by kind; `base` are the base model's, with the wanted ones as `real`."""
    from peft_runs.one_step_measures import one_step_figures
    from peft_runs.pipeline_measures import drawn_figures

    return one_step_figures(found["own"], base["real"]) if wanted == TEACHER else drawn_figures(found, base, prompts)


def figures_of(place: Path) -> Mapping[str, float]:
    """The figures of the pictures in a folder; none where there are no pictures."""
    return (read_measured(place) or {"figures": {}})["figures"]


if __name__ == "__main__":
    follow_parent()
    main(FAMILIES[sys.argv[1]], Path(sys.argv[2]), [RunFolder(Path(place)) for place in sys.argv[3:]])
