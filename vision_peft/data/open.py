"""From the data's name in a recipe to its pictures."""

from pathlib import Path

from peft_kernels.data_errors import UnknownNameError, unknown
from vision_peft.data.benchmarks import BENCHMARKS
from vision_peft.data.digits import Digits
from vision_peft.data.few_shot import PARTS, FewShot
from vision_peft.data.folder import open_folder
from vision_peft.data.listed import open_benchmark
from vision_peft.data.pictures import Pictures, few
from vision_peft.data.timm_names import TimmPictures, timm_schemes

EMBEDDED = ("digits", "folder")


def open_split(
    name: str,
    root: Path | None,
    split: str,
    classes: list[str] | None = None,
    size: int | None = None,
    seed: int = 0,
    few_shot: FewShot | None = None,
) -> Pictures:
    """The pictures of one part.

    Args:
        name: `digits` (embedded), `folder` (a folder or zip at `root`), a benchmark's task (`vtab/cifar`, `fgvc/cub`)
            or a name of timm's dataset factory (`torch/cifar10`, `hfds/<dataset on the hub>`).
        root: where the data lie; for timm's names also where they are kept after a download.
        split: the part's name.
        classes: the class names in order, where another part has already fixed them.
        size: take this many pictures only, in the classes' shares, chosen by `seed`.
        few_shot: cuts the parts `train`, `val`, `trainval` and `rest` out of one of the source's own.

    Raises:
        DataError: unknown name (with the nearest known one), missing part, unreadable file.
    """
    if few_shot is not None and split in PARTS:
        return few_shot.part(open_split(name, root, few_shot.pool, classes), split)
    if name == "digits":
        pictures: Pictures = Digits(split)
    elif name == "folder":
        if root is None:
            raise UnknownNameError("the data are a folder, but no folder is given: add --data.root FOLDER_OR_ZIP")
        pictures = open_folder(root, split, classes)
    elif name.partition("/")[0] in BENCHMARKS:
        pictures = open_benchmark(name, root, split)
    elif "/" in name and name.partition("/")[0] in timm_schemes():
        pictures = TimmPictures(name, root, split)
    else:
        schemes = (f"{scheme}/..." for scheme in timm_schemes())
        tasks = (f"{prefix}/{task}" for prefix, benchmark in BENCHMARKS.items() for task in benchmark.tasks)
        raise unknown("data", name, [*EMBEDDED, *schemes, *tasks])
    return pictures if size is None else few(pictures, size, seed, "data.train_size")
