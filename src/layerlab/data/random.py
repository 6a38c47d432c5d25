"""The random problem: standard normal inputs and targets that have nothing to do with each other.

A network with enough parameters learns them by heart, which is all that the problem is for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerlab.data.dataset import Dataset
from layerlab.data.room import check_memory
from layerlab.errors import DataError
from layerlab.seeding import generator
from layerlab.spec import DEFAULT_SIZES

if TYPE_CHECKING:
    from layerlab.spec import DataSpec


def random_dataset(spec: DataSpec, seed: int) -> Dataset:
    """Draws x (n, d_in) and y (n, d_out); by default 64 rows, 1000 inputs, 10 outputs.

    Raises:
        DataError: That is more than memory holds.
    """
    n, d_in, d_out = (getattr(spec, key) or size for key, size in DEFAULT_SIZES.items())
    what = f"data.n {n}, data.d_in {d_in} and data.d_out {d_out}"
    check_memory(what, n * (d_in + d_out))
    rng = generator(seed, "data")
    try:
        x, y = rng.standard_normal((n, d_in)), rng.standard_normal((n, d_out))
    except (ValueError, MemoryError):
        raise DataError(f"{what} are more than this machine's memory holds") from None
    return Dataset(
        name="random",
        source="generated",
        x=x,
        y=y,
        features=tuple(f"x{i}" for i in range(d_in)),
        outputs=tuple(f"y{i}" for i in range(d_out)),
        classes=None,
        standardise=False,
    )
