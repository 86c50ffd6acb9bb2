"""Which sample is seen when, and what is random: pure functions of (seed, epoch, step, process).

Nothing else carries randomness from one step to the next, so a run that goes on from step s needs no generator
states, and a batch holds the same samples however many processes share it.
"""

import random
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

from peft_runs.errors import UsageError

Key = tuple[int, int]


def seed_from(*words: int) -> int:
    """A 64-bit seed that depends on every word."""
    return int(np.random.SeedSequence(list(words)).generate_state(1, np.uint64)[0])


def seed_generators(*words: int) -> None:
    """Seed torch (all devices), numpy and Python from the words."""
    seed = seed_from(*words)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (libraries draw from the global one)
    random.seed(seed)


def epoch_order(seed: int, epoch: int, samples: int) -> np.ndarray:
    """The order of all samples in one epoch, int64 `[samples]`."""
    return np.random.default_rng([seed, epoch]).permutation(samples)


def whole_batches(samples: int, batch_size: int, parts: int, processes: int) -> int:
    """How many batches an epoch has; the last samples may be too few for one more.

    Raises:
        UsageError: batches cannot be shared equally, or there are too few samples for one.
    """
    if batch_size % (parts * processes):
        raise UsageError(
            f"optim.batch_size {batch_size} cannot be shared equally by {parts} parts "
            f"(run.accumulate) on {processes} processes"
        )
    if samples < batch_size:
        raise UsageError(f"optim.batch_size is {batch_size}, but there are only {samples} training samples")
    return samples // batch_size


class TrainingOrder(Sampler[list[Key]]):
    """The parts of the batches that one process takes, from step `start` to step `stop`.

    A batch of `batch_size` samples is cut into `parts × processes` equal pieces; process p takes piece
    `part × processes + p` of each part. The samples that do not fill an epoch's last batch are left out of it.
    """

    def __init__(
        self, samples: int, batch_size: int, start: int, stop: int, seed: int, parts: int, process: int, processes: int
    ):
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.start, self.stop = start, stop
        self.parts, self.process, self.processes = parts, process, processes
        self.steps_per_epoch = samples // batch_size

    def __len__(self) -> int:
        return (self.stop - self.start) * self.parts

    def __iter__(self) -> Iterator[list[Key]]:
        piece = self.batch_size // (self.parts * self.processes)
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.start, self.stop):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = epoch_order(self.seed, epoch, self.samples)
            first = step % self.steps_per_epoch * self.batch_size
            for part in range(self.parts):
                begin = first + (part * self.processes + self.process) * piece
                yield [(epoch, int(index)) for index in order[begin : begin + piece]]


class TestOrder(Sampler[list[Key]]):
    """Every sample once, in order, dealt out to the processes."""

    def __init__(self, samples: int, batch_size: int, process: int, processes: int):
        self.indices = range(process, samples, processes)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for begin in range(0, len(self.indices), self.batch_size):
            yield [(0, index) for index in self.indices[begin : begin + self.batch_size]]
