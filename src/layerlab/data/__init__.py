"""Data sets: the random problem, those that scikit-learn bundles, and files of the user's own.

Importing this costs nothing: what reads a kind of data is imported when it is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from layerlab.errors import DataError, check_is_file, did_you_mean, one_line
from layerlab.spec import BUNDLED, RANDOM, TABLE_SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Callable

    from layerlab.data.dataset import Dataset, Prepared
    from layerlab.spec import ExperimentSpec

__all__ = ["check_table", "load_dataset", "load_prepared"]


def check_table(name: str) -> Path:
    """The path of a table, without opening it.

    Raises:
        DataError: No such file, or not one of a kind that is read.
    """
    path = Path(name)
    try:
        name.encode()
    except UnicodeEncodeError:  # Arrow takes no such name
        raise DataError(f"{name}: its name is not UTF-8 text", hint="rename it") from None
    if path.suffix.lower() not in TABLE_SUFFIXES:
        known = did_you_mean(name, (RANDOM, *BUNDLED))
        raise DataError(
            f"no data is called '{one_line(name)}'",
            hint=f"{known}; a file of your own ends in {', '.join(TABLE_SUFFIXES)}",
        )
    check_is_file(name, DataError)
    return path


def load_dataset(spec: ExperimentSpec, told: Callable[[str], None] = lambda _: None) -> Dataset:
    """Reads or draws the data of an experiment, in float64.

    Args:
        spec: The experiment.
        told: Told how far it is, where it takes long.

    Raises:
        DataError: The data cannot be read, or cannot be learned from.
    """
    if spec.data.name == RANDOM:
        from layerlab.data.random import random_dataset

        return random_dataset(spec.data, spec.train.seed)
    if spec.data.name in BUNDLED:
        from layerlab.data.bundled import bundled_dataset

        return bundled_dataset(spec.data.name)
    from layerlab.data.large import is_large, large_table_dataset
    from layerlab.data.table import table_dataset

    path = check_table(spec.data.name)
    if is_large(path):
        return large_table_dataset(path, spec.data.target, told)
    return table_dataset(path, spec.data.target)


def load_prepared(spec: ExperimentSpec, told: Callable[[str], None] = lambda _: None) -> Prepared:
    """The data of an experiment, split and with its standardisation.

    Args:
        spec: The experiment.
        told: Told how far it is, where it takes long.

    Raises:
        DataError: As `load_dataset`; or there are too few rows to keep some for validation.
    """
    from layerlab.data.dataset import prepare

    return prepare(load_dataset(spec, told), val_fraction=spec.val_fraction, seed=spec.train.seed)
