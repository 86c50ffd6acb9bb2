"""The tasks of VTAB-1k and FGVC as plain data: what each is called, its group, classes, parts and folders.

VTAB-1k (Zhai et al., 2019, in the form of Jia et al., *Visual Prompt Tuning*, ECCV 2022): 19 tasks of 1,000 labelled
pictures, 800 to train and 200 to choose settings, and a whole test part. FGVC (Jia et al.): five fine-grained tasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass

PARTS = ("train", "val", "trainval", "test")


@dataclass(frozen=True)
class BenchmarkTask:
    """One task.

    Attributes:
        group: the mean it counts into.
        sizes: pictures in `train`, `val` and `test`; `trainval` has those of the first two.
        folders: names that the task's folder has in the copies that go round.
        images: the folder below it that the lists' paths start from.
    """

    group: str
    classes: int
    sizes: tuple[int, int, int]
    folders: tuple[str, ...]
    images: str = ""

    def size(self, part: str) -> int:
        train, val, test = self.sizes
        return {"train": train, "val": val, "trainval": train + val, "test": test}[part]


@dataclass(frozen=True)
class Benchmark:
    """A set of tasks whose lists have one form.

    Attributes:
        folder: what the folder of all tasks is usually called.
        lists: the files, below the task's folder, that list a part; `.txt` has lines `path label`, `.json` maps path to
            label.
    """

    title: str
    folder: str
    lists: Mapping[str, tuple[str, ...]]
    tasks: Mapping[str, BenchmarkTask]


def _vtab(group: str, **tasks: tuple[int, int]) -> dict[str, BenchmarkTask]:
    return {name: BenchmarkTask(group, classes, (800, 200, test), (name,)) for name, (classes, test) in tasks.items()}


VTAB = Benchmark(
    title="VTAB-1k",
    folder="vtab-1k",
    lists={
        "train": ("train800.txt",),
        "val": ("val200.txt",),
        "trainval": ("train800val200.txt",),
        "test": ("test.txt",),
    },
    tasks={
        **_vtab(
            "Natural",
            cifar=(100, 10_000),
            caltech101=(102, 6_084),
            dtd=(47, 1_880),
            oxford_flowers102=(102, 6_149),
            oxford_iiit_pet=(37, 3_669),
            svhn=(10, 26_032),
            sun397=(397, 21_750),
        ),
        **_vtab(
            "Specialized",
            patch_camelyon=(2, 32_768),
            eurosat=(10, 5_400),
            resisc45=(45, 6_300),
            diabetic_retinopathy=(5, 42_670),
        ),
        **_vtab(
            "Structured",
            clevr_count=(8, 15_000),
            clevr_dist=(6, 15_000),
            dmlab=(6, 22_735),
            kitti=(4, 711),
            dsprites_loc=(16, 73_728),
            dsprites_ori=(16, 73_728),
            smallnorb_azi=(18, 12_150),
            smallnorb_ele=(9, 12_150),
        ),
    },
)

FGVC = Benchmark(
    title="FGVC",
    folder="fgvc",
    lists={
        "train": ("train.json",),
        "val": ("val.json",),
        "trainval": ("train.json", "val.json"),
        "test": ("test.json",),
    },
    tasks={
        "cub": BenchmarkTask("FGVC", 200, (5_394, 600, 5_794), ("CUB_200_2011", "CUB", "cub"), "images"),
        "nabirds": BenchmarkTask("FGVC", 555, (21_536, 2_393, 24_633), ("nabirds", "NABirds"), "images"),
        "flowers": BenchmarkTask("FGVC", 102, (1_020, 1_020, 6_149), ("OxfordFlower", "OxfordFlowers", "flowers")),
        "dogs": BenchmarkTask(
            "FGVC", 120, (10_800, 1_200, 8_580), ("stanford-dogs", "StanfordDogs", "Stanford-dogs", "dogs"), "Images"
        ),
        "cars": BenchmarkTask(
            "FGVC", 196, (7_329, 815, 8_041), ("stanford-cars", "StanfordCars", "Stanford-cars", "cars")
        ),
    },
)

BENCHMARKS = {"vtab": VTAB, "fgvc": FGVC}
