"""Random numbers: one NumPy generator a purpose, derived from the seed of the run.

No framework's global generator is read or seeded, so that two tiers, or two runs of one tier, start from
the same point and see the same batches whatever else the process does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

Stream = Literal["data", "params", "split", "order"]
# A purpose keeps its number for good: another one would give other weights for the same seed.
_NUMBERS: dict[Stream, int] = {"data": 0, "params": 1, "split": 2, "order": 3}


def generator(seed: int, stream: Stream, *index: int) -> np.random.Generator:
    """The generator of one purpose of one run.

    Args:
        seed: The seed of the run, 0 or more.
        stream: What the numbers are for.
        index: Which one of several, for example the epoch whose order is drawn.

    Returns:
        A fresh generator. The same arguments always give the same numbers.
    """
    import numpy as np

    return np.random.default_rng([_NUMBERS[stream], *index, seed])
