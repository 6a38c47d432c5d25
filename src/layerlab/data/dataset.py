"""A data set, in memory or mapped from a file; its split for validation; its standardisation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from layerlab.data.mapped import ArrayWriter, chunks, is_mapped
from layerlab.errors import DataError
from layerlab.seeding import generator

if TYPE_CHECKING:
    import numpy.typing as npt

    from layerlab.tier import Array

    Rows = npt.NDArray[np.intp]

# So many rows of a mapped data set stand for all of them where predictions are compared, or fewer where they
# are wide: whoever compares makes some copies of them, and of a quarter of the size from which on a table is
# mapped at all (`layerlab.data.large.LARGE`) these take about what a table in memory may.
SAMPLE_ROWS, SAMPLE_BYTES = 4096, 2**26


@dataclass(frozen=True)
class Dataset:
    """Inputs and targets in their own units.

    Attributes:
        name: What the data is called.
        source: Where it comes from: "generated", "scikit-learn", or the path of a file.
        x: Inputs, float64, shape (N, n_in).
        y: Targets, float64, shape (N, n_out); one-hot for a classification.
        features: Names of the inputs, n_in of them.
        outputs: Names of the outputs, n_out of them.
        classes: Names of the classes, n_out of them; None for a regression.
        standardise: Whether inputs (and the targets of a regression) are to be standardised for training.
    """

    name: str
    source: str
    x: Array
    y: Array
    features: tuple[str, ...]
    outputs: tuple[str, ...]
    classes: tuple[str, ...] | None
    standardise: bool

    @property
    def task(self) -> str:
        """Either "classification" or "regression"."""
        return "regression" if self.classes is None else "classification"

    @property
    def label(self) -> str:
        """What errors call it: the path of a file, or the name."""
        return self.name if self.source in {"generated", "scikit-learn"} else self.source

    @property
    def is_mapped(self) -> bool:
        """Whether the rows live in a file: there are more of them than memory should hold."""
        return is_mapped(self.x)

    def sample(self) -> Array:
        """Raw inputs to compare predictions on: all rows, or of a mapped data set some from all over it."""
        if not self.is_mapped:
            return self.x
        rows, width = self.x.shape
        count = min(rows, SAMPLE_ROWS, max(1, SAMPLE_BYTES // (self.x.itemsize * width)))
        return np.array(self.x[np.linspace(0, rows - 1, count).astype(np.intp)])

    @cached_property
    def digest(self) -> str:
        """The start of the SHA-256 of the numbers: two data sets with one digest are the same."""
        digest = hashlib.sha256()
        for array in (self.x, self.y):
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Scaler:
    """Standardisation by the statistics of the training rows. A constant column has the scale 1.

    Attributes:
        x_mean: Means of the inputs, shape (n_in,).
        x_std: Standard deviations of the inputs, shape (n_in,), never 0.
        y_mean: Means of the targets, shape (n_out,); 0 for a classification.
        y_std: Standard deviations of the targets, shape (n_out,); 1 for a classification.
    """

    x_mean: Array
    x_std: Array
    y_mean: Array
    y_std: Array

    @classmethod
    def fit(cls, x: Array, y: Array, rows: Rows, *, scale_targets: bool) -> Scaler:
        """Takes the statistics of some rows."""
        if scale_targets:
            y_mean, y_std = _statistics(y, rows)
        else:
            y_mean, y_std = np.zeros(y.shape[1]), np.ones(y.shape[1])
        return cls(*_statistics(x, rows), y_mean, y_std)

    def standardise_x(self, x: Array) -> Array:
        """Raw inputs in units of training; shape (N, n_in)."""
        return (x - self.x_mean) / self.x_std

    def standardise_y(self, y: Array) -> Array:
        """Raw targets in units of training; shape (N, n_out)."""
        return (y - self.y_mean) / self.y_std

    def restore_y(self, y: Array) -> Array:
        """Predictions in the target's own units; shape (N, n_out)."""
        return y * self.y_std + self.y_mean


def _statistics(values: Array, rows: Rows) -> tuple[Array, Array]:
    """Means and standard deviations of some rows, a part of them at a time.

    Two parts are put together as in Chan, Golub and LeVeque, "Algorithms for computing the sample variance",
    The American Statistician 37 (1983).
    """
    width = values.shape[1]
    count, mean, squares = 0, np.zeros(width), np.zeros(width)
    low, high = np.full(width, np.inf), np.full(width, -np.inf)
    for chosen in chunks(rows, width):
        part = values[chosen]
        n, part_mean = len(part), part.mean(axis=0)
        part_squares = np.square(part - part_mean).sum(axis=0)
        off, total = part_mean - mean, count + n
        if count == 0:
            mean, squares = part_mean, part_squares
        else:
            mean = mean + off * (n / total)
            squares = squares + part_squares + np.square(off) * (count * n / total)
        count = total
        low, high = np.minimum(low, part.min(axis=0)), np.maximum(high, part.max(axis=0))
    std = np.sqrt(squares / count)
    # The computed deviation of a constant column is its rounding error, not always 0.
    constant = low == high
    std[constant] = 1.0
    mean[constant] = low[constant]
    return mean, std


@dataclass(frozen=True)
class Prepared:
    """A data set that is split, with the standardisation that its training rows give.

    Attributes:
        dataset: The data in its own units.
        train: Indices of the training rows.
        val: Indices of the validation rows, perhaps none.
        scaler: The standardisation, or None where there is none.
    """

    dataset: Dataset
    train: Rows
    val: Rows
    scaler: Scaler | None

    def arrays(
        self, rows: Rows, x_dtype: npt.DTypeLike = np.float64, y_dtype: npt.DTypeLike = np.float64
    ) -> tuple[Array, Array]:
        """Inputs (n, n_in) and targets (n, n_out) of some rows, in units of training.

        Those of a mapped data set are mapped too, laid out in the types that are asked for, so that nobody
        has to convert them; others are float64.

        Raises:
            DataError: There is no room to lay them out.
        """
        data, scaler = self.dataset, self.scaler

        def identity(part: Array) -> Array:
            return part

        scale_x, scale_y = (scaler.standardise_x, scaler.standardise_y) if scaler else (identity, identity)
        if not data.is_mapped:
            return scale_x(data.x[rows]), scale_y(data.y[rows])
        laid_out = []
        for values, scale, dtype in ((data.x, scale_x, x_dtype), (data.y, scale_y, y_dtype)):
            width = values.shape[1]
            with ArrayWriter(data.label, width, dtype, least_rows=len(rows)) as out:
                for chosen in chunks(rows, width):
                    out.append(scale(values[chosen]))
                laid_out.append(out.mapped())
        x, y = laid_out
        return x, y


def prepare(dataset: Dataset, *, val_fraction: float, seed: int) -> Prepared:
    """Splits and standardises. A classification keeps the share of every class.

    Args:
        dataset: The data.
        val_fraction: Share of the rows kept for validation, 0 for none.
        seed: The seed of the run.

    Raises:
        DataError: Too few rows to keep some for validation.
    """
    labels = np.zeros(len(dataset.x), np.intp) if dataset.classes is None else dataset.y.argmax(axis=1)
    train, val = _split(labels, val_fraction, seed)
    if val_fraction > 0 and (len(train) == 0 or len(val) == 0):
        raise DataError(
            f"{dataset.label}: {len(dataset.x)} rows are too few to keep {val_fraction:g} for validation",
            hint="--val-fraction 0 trains on all rows",
        )
    scaler = None
    if dataset.standardise:
        scale_targets = dataset.classes is None
        scaler = Scaler.fit(dataset.x, dataset.y, train, scale_targets=scale_targets)
    return Prepared(dataset, train, val, scaler)


def _split(labels: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    if fraction == 0:
        return np.arange(len(labels)), np.arange(0)
    rng = generator(seed, "split")
    order = rng.permutation(len(labels))
    wanted = max(1, round(fraction * len(labels)))
    # Within each class the rows get evenly spaced ranks in (0, 1); the lowest ranks are the validation rows,
    # so that every class is there with its share, as far as whole rows allow.
    ranks = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        ranks[members] = (np.arange(len(members)) + 0.5) / len(members)
    by_rank = order[np.argsort(ranks[order], kind="stable")]
    return np.sort(by_rank[wanted:]), np.sort(by_rank[:wanted])
