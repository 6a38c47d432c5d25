"""What problems are drawn from: in every round and mode another one, for all tiers the same.

Of a seed that is known beforehand all answers are: a bench that is not given one draws it.
"""

from __future__ import annotations

import numpy as np

from layerlab.benchmarking.report import MODES


def seed_of(seed: int, number: int | None = None, mode: str = "bare") -> int:
    """The seed of a problem: an answer that was kept from another round or mode is none to this one.

    Args:
        seed: The seed of the bench, 0 or more.
        number: The round; None: the warm-up before them.
        mode: What is timed.
    """
    place = (0, 0) if number is None else (number + 1, 1 + MODES.index(mode))
    return int(np.random.SeedSequence((seed, *place)).generate_state(1)[0])
