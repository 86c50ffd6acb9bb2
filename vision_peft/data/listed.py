"""Pictures that text or JSON files list with their labels, in the layouts in which VTAB-1k and FGVC go round."""

import json
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from peft_kernels.data_errors import DataError, UnknownNameError, unknown
from vision_peft.data.benchmarks import BENCHMARKS, PARTS, Benchmark, BenchmarkTask
from vision_peft.data.pictures import decoded


class ListedPictures:
    """The pictures below `root` with these paths and labels."""

    def __init__(self, root: Path, names: list[str], labels: np.ndarray, classes: int):
        self.root, self.names, self.labels = root, names, labels
        self.classes = [str(index) for index in range(classes)]

    def picture(self, index: int) -> Image.Image:
        """The picture in RGB.

        Raises:
            DataError: it is not there or cannot be decoded; the message names the file.
        """
        path = self.root / self.names[index]
        return decoded(path, path.read_bytes)


def open_benchmark(name: str, root: Path | None, part: str) -> ListedPictures:
    """One part of a task, `vtab/cifar` or `fgvc/cub`, that lies at `root` or below it.

    Raises:
        UnknownNameError: no such benchmark, task or part; the nearest is told.
        DataError: no folder or list is there (all places looked at are told), or a list is not what it should be.
    """
    prefix, _, task_name = name.partition("/")
    benchmark = BENCHMARKS[prefix]
    if task_name not in benchmark.tasks:
        raise unknown(f"{benchmark.title} task", task_name, benchmark.tasks)
    if part not in PARTS:
        raise unknown(f"part of {name}", part, PARTS)
    if root is None:
        raise UnknownNameError(f"{name} is read from a folder, but none is given: add --data.root FOLDER")
    task = benchmark.tasks[task_name]
    folder = _folder(name, root, benchmark, task)
    lists = [folder / file for file in benchmark.lists[part]]
    for path in lists:
        if not path.is_file():
            raise DataError(f"{name}: the list {path} is missing")
    if lists[0].suffix == ".json":
        listed, numbers = _json_lists(lists, folder / benchmark.lists["train"][0])
    else:
        listed, numbers = _text_list(lists[0])
    shown = " and ".join(map(str, lists))
    labels = np.array(numbers, dtype=np.int64)
    if len(labels) != task.size(part):
        raise DataError(f"{shown}: expected {task.size(part):,} pictures, found {len(labels):,}")
    outside = labels[(labels < 0) | (labels >= task.classes)]
    if len(outside):
        raise DataError(f"{shown}: {name} has the classes 0 to {task.classes - 1}, found {outside[0]}")
    missing = sorted(set(range(task.classes)) - set(labels.tolist())) if part == "test" else []
    if missing:
        raise DataError(
            f"{shown}: {name} has {task.classes} classes, found {task.classes - len(missing)} (none of {missing[0]})"
        )
    return ListedPictures(folder / task.images, listed, labels, task.classes)


def _folder(name: str, root: Path, benchmark: Benchmark, task: BenchmarkTask) -> Path:
    """The first of the usual places that exists."""
    places = [above / folder for above in (root, root / benchmark.folder) for folder in task.folders]
    found = [root] if root.name in task.folders and root.is_dir() else [place for place in places if place.is_dir()]
    if not found:
        raise DataError(f"{name} is not there: looked for {', '.join(map(str, places))}")
    return found[0]


def _text_list(path: Path) -> tuple[list[str], list[int]]:
    """Lines `images/... label`; a path may hold spaces."""
    names, labels = [], []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.isdecimal():
            raise DataError(f"{path}, line {number}: expected 'path label', found {line.strip()!r}")
        names.append(_inside(path, name.strip()))
        labels.append(int(label))
    return names, labels


def _json_lists(paths: list[Path], training: Path) -> tuple[list[str], list[int]]:
    """Mappings of path to label; labels of any numbering become 0, 1, ... in the order they have in training."""
    if not training.is_file():
        raise DataError(f"the list {training} is missing")
    numbers = {label: index for index, label in enumerate(sorted(set(_mapping(training).values())))}
    pairs = [(path, name, label) for path in paths for name, label in _mapping(path).items()]
    for path, name, label in pairs:
        if label not in numbers:
            raise DataError(f"{path}: {name!r} has the label {label!r}, which {training.name} does not have")
    return [_inside(path, name) for path, name, _ in pairs], [numbers[label] for *_, label in pairs]


def _mapping(path: Path) -> dict[str, int]:
    try:
        data = json.loads(_text(path))
    except ValueError as error:
        raise DataError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(data, dict) or not all(isinstance(label, int) for label in data.values()):
        raise DataError(f"{path}: expected a mapping of paths to whole numbers")
    return data


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def _inside(path: Path, name: str) -> str:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise DataError(f"{path}: {name!r} leaves the folder")
    return name
