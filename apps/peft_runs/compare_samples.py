"""What adapted models draw, in a comparison: each run keeps its pictures, and one process measures them all.

    python -m peft_runs.compare_samples FAMILY OUT FOLDER...          run folders

That process also draws with the base model, from the same seeds, into `OUT/base`.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from peft_runs.compare_child import FAMILIES, follow_parent
from peft_runs.durable import whole_folder, write_json
from peft_runs.families import Family
from peft_runs.find import load_recipe
from peft_runs.read import read_recipe
from peft_runs.run_folder import RunFolder
from peft_runs.start import start_accelerator
from peft_runs.whole_file import whole_file

DRAWN, MEASURED = "drawn.safetensors", "drawn.json"
BASE = "base"


class Compared(Protocol):
    """Prompts of a task by kind, the pictures of the data that belong to the `own`, and what a model draws."""

    prompts: dict[str, list[str]]

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
    """What was measured on the pictures in a folder: `figures`, and with the base model also `prompts` by kind."""
    path = place / MEASURED
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def main(family: Family, out: Path, folders: list[RunFolder]) -> None:
    """Measure the pictures of every run that has not been, and write the figures into its folder."""
    from peft_runs.pipeline_measures import drawn_figures

    if read_measured(out / BASE) is None:
        draw_base(family, out, folders[0])
    base, prompts = read_pictures(out / BASE), read_measured(out / BASE)["prompts"]  # type: ignore[index]
    for folder in folders:
        if read_measured(folder.path) is None:
            figures = drawn_figures(read_pictures(folder.path), base, prompts)
            write_json(folder.path / MEASURED, {"figures": figures})


def draw_base(family: Family, out: Path, folder: RunFolder) -> None:
    """Draw and measure with the model that the runs began with; `folder` is one of them."""
    from peft_runs.pipeline_measures import drawn_figures

    recipe = read_recipe(load_recipe(folder.recipe), ["--run.threads", "null"], family.tasks())
    accelerator = start_accelerator(recipe.run)
    task: Any = family.tasks()[recipe.task](recipe.model, recipe.data, recipe.run.seed)
    model = task.build_model().to(accelerator.device).eval()
    compared: Compared = task.compared()
    with whole_folder(out / BASE) as aside:
        drawn = {kind: compared.draw(model, kind) for kind in compared.prompts} | {"real": compared.real()}
        save_pictures(drawn, aside)
        figures = drawn_figures(drawn, drawn, compared.prompts)
        write_json(aside / MEASURED, {"figures": figures, "prompts": compared.prompts})


def figures_of(place: Path) -> Mapping[str, float]:
    """The figures of the pictures in a folder; none where there are no pictures."""
    return (read_measured(place) or {"figures": {}})["figures"]


if __name__ == "__main__":
    follow_parent()
    main(FAMILIES[sys.argv[1]], Path(sys.argv[2]), [RunFolder(Path(place)) for place in sys.argv[3:]])
