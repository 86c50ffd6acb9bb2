"""The few-shot protocol in the manner of VTAB-1k for any source: few pictures, some of them to choose settings with."""

from dataclasses import dataclass

import numpy as np

from peft_kernels.data_errors import DataError
from vision_peft.data.pictures import Pictures, Subset, few

PARTS = ("train", "val", "trainval", "rest")


@dataclass(frozen=True)
class FewShot:
    """How one part of a source, the pool, is cut: `trainval` is drawn from it, and is `train` and `val` together.

    Attributes:
        pool: the source's part.
        size: pictures of `trainval`; null takes the whole pool, which leaves no `rest`.
        val_size: pictures of `val`. All are drawn in the classes' shares.
        seed: chooses the pictures.
    """

    pool: str
    size: int | None
    val_size: int
    seed: int

    def part(self, pictures: Pictures, name: str) -> Pictures:
        """`train`, `val`, `trainval` or `rest` of the pool's pictures, the same for the same seed.

        Raises:
            DataError: there are too few pictures for these sizes.
        """
        everything = np.arange(len(pictures.labels))
        trainval = everything if self.size is None else few(pictures, self.size, self.seed, "data.train_size").indices
        val = few(Subset(pictures, trainval), self.val_size, self.seed, "data.val_size").indices
        chosen = {
            "train": np.delete(trainval, val),
            "val": trainval[val],
            "trainval": trainval,
            "rest": np.delete(everything, trainval),
        }[name]
        if not len(chosen):
            raise DataError(
                f"nothing is left for the part {name!r}: the pool {self.pool!r} has {len(trainval)} pictures"
            )
        return Subset(pictures, chosen)
