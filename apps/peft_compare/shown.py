"""What the pages show beside a comparison's results, worked out once by the run's own process.

shown.json     the classes and labels of the test pictures, and where the parameters of each method went
tiles.png      the test pictures, small, one beside the other
"""

import math
from pathlib import Path
from typing import Any

from PIL import Image

from peft_compare.viewing import has_clouds, view_test_clouds
from peft_runs.adapter_report import inspect_adapter
from peft_runs.durable import write_json
from peft_runs.families import Family
from peft_runs.find import load_recipe
from peft_runs.read import read_recipe
from peft_runs.report_pictures import Labelled, ShowsPictures
from peft_runs.run_folder import RunFolder
from peft_runs.selection_grid import grid_of

SHOWN, TILES = "shown.json", "tiles.png"
LARGEST, MOST = 48, 1000  # pixels of a tile's side; tiles


def write_shown(out: Path, family: Family) -> None:
    """Write both files for the finished runs below `out`; nothing where there are none."""
    folders = [RunFolder(place.parent) for place in sorted(out.glob("*/seed-*/examined.json"))]
    if not folders:
        return
    shown: dict[str, Any] = {"where": where(folders)}
    tasks = family.tasks()
    recipe = read_recipe(load_recipe(folders[0].recipe), [], tasks)
    task = tasks[recipe.task](recipe.model, recipe.data, recipe.run.seed)
    if isinstance(task, ShowsPictures):
        labels = [int(label) for label in task.test_pictures.labels]
        shown |= {"classes": list(map(str, task.classes)), "labels": labels}
        if not has_clouds(task):
            shown |= write_tiles(task.test_pictures, min(MOST, len(labels)), out / TILES)
    if has_clouds(task):
        view_test_clouds(out)  # they are turned on the page, not shown as tiles
    write_json(out / SHOWN, shown)


def where(folders: list[RunFolder]) -> dict[str, Any]:
    """Numbers that each method's adapter holds, by block (rows) and kind of module (columns).

    What stands outside of blocks comes last, by the first word of its name: it would only widen the map.
    """
    counts: dict[str, dict[str, int]] = {}
    for folder in folders:
        method = folder.path.parent.name
        if method not in counts:
            layers = inspect_adapter(folder.adapter).layers
            counts[method] = {layer.name: layer.parameters for layer in layers}
    names = dict.fromkeys(name for found in counts.values() for name in found)
    every = grid_of(names)
    inside = [name for name in names if every.rows[every.places[name][0]]]
    word = {name: name if name in inside else name.partition(".")[0] for name in names}
    grid = grid_of([*inside, *word.values()])
    cells: dict[str, list[list[int]]] = {}
    for method, found in counts.items():
        cells[method] = [[0] * len(grid.columns) for _ in grid.rows]
        for name, count in found.items():
            row, column = grid.places[word[name]]
            cells[method][row][column] += count
    return {"rows": grid.row_labels, "columns": grid.column_labels, "cells": cells}


def write_tiles(pictures: Labelled, count: int, target: Path) -> dict[str, int]:
    """The first `count` pictures as one; the side of a tile and how many stand in a row."""
    first = pictures.picture(0)
    side = min(LARGEST, max(first.size))
    across = max(1, math.ceil(math.sqrt(count)))
    sheet = Image.new("RGB", (across * side, math.ceil(count / across) * side))
    for place in range(count):
        tile = pictures.picture(place)
        tile.thumbnail((side, side))
        sheet.paste(tile, (place % across * side, place // across * side))
    sheet.save(target, "PNG", optimize=True)
    return {"tile": side, "across": across, "tiles": count}
