"""Seeds for what is random: pure functions of words such as (seed, epoch, index), the same in every process."""

import numpy as np


def draw_seed(*words: int) -> int:
    """A 64-bit seed that depends on every word (numpy's SeedSequence hashes them)."""
    return int(np.random.SeedSequence([word & 0xFFFFFFFFFFFFFFFF for word in words]).generate_state(1, np.uint64)[0])
