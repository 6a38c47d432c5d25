"""A data set in memory, its split into training and validation rows, and its standardisation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from layerlab.errors import DataError
from layerlab.seeding import generator

if TYPE_CHECKING:
    import numpy.typing as npt

    from layerlab.tier import Array

    Rows = npt.NDArray[np.intp]


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
    def fit(cls, x: Array, y: Array, *, scale_targets: bool) -> Scaler:
        """Takes the statistics of training rows."""
        y_mean, y_std = _statistics(y) if scale_targets else (np.zeros(y.shape[1]), np.ones(y.shape[1]))
        return cls(*_statistics(x), y_mean, y_std)

    def standardise_x(self, x: Array) -> Array:
        """Raw inputs in units of training; shape (N, n_in)."""
        return (x - self.x_mean) / self.x_std

    def standardise_y(self, y: Array) -> Array:
        """Raw targets in units of training; shape (N, n_out)."""
        return (y - self.y_mean) / self.y_std

    def restore_y(self, y: Array) -> Array:
        """Predictions in the target's own units; shape (N, n_out)."""
        return y * self.y_std + self.y_mean


def _statistics(values: Array) -> tuple[Array, Array]:
    mean, std = values.mean(axis=0), values.std(axis=0)
    # The computed deviation of a constant column is its rounding error, not always 0.
    constant = np.ptp(values, axis=0) == 0
    std[constant] = 1.0
    mean[constant] = values[0, constant]
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

    def arrays(self, rows: Rows) -> tuple[Array, Array]:
        """Inputs (n, n_in) and targets (n, n_out) of some rows, in units of training, float64."""
        x, y = self.dataset.x[rows], self.dataset.y[rows]
        if self.scaler is not None:
            x, y = self.scaler.standardise_x(x), self.scaler.standardise_y(y)
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
        scaler = Scaler.fit(dataset.x[train], dataset.y[train], scale_targets=scale_targets)
    return Prepared(dataset, train, val, scaler)


def _split(labels: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    rng = generator(seed, "split")
    order = rng.permutation(len(labels))
    if fraction == 0:
        return np.arange(len(labels)), order[:0]
    wanted = max(1, round(fraction * len(labels)))
    # Within each class the rows get evenly spaced ranks in (0, 1); the lowest ranks are the validation rows,
    # so that every class is there with its share, as far as whole rows allow.
    ranks = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        ranks[members] = (np.arange(len(members)) + 0.5) / len(members)
    by_rank = order[np.argsort(ranks[order], kind="stable")]
    return np.sort(by_rank[wanted:]), np.sort(by_rank[:wanted])
