"""Tables of the user's own: CSV and Parquet files, checked before anything is trained on them.

Every complaint names the file and the column, and the row by its place among the rows of data, from 1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from layerlab.data.dataset import Dataset
from layerlab.errors import DataError, did_you_mean, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt
    import pyarrow as pa

    from layerlab.tier import Array

# Arrow infers a column's type from its first block: one block for the whole file, up to Arrow's limit.
_LARGEST_BLOCK = 2**31 - 1


def table_dataset(path: Path, targets: Sequence[str]) -> Dataset:
    """Reads a table and takes the named columns as targets, all others as inputs.

    Numeric targets make a regression; one target of text or booleans makes a classification.

    Raises:
        DataError: The file cannot be read, or a column cannot be learned from.
    """
    name, table = str(path), read_table(path)
    columns = table.column_names
    if not targets:
        raise DataError(
            f"{name}: which column is to be learned?", hint=f"--target COLUMN, of: {_shown(columns)}"
        )
    for target in targets:
        if target not in columns:
            raise DataError(
                f"{name}: there is no column '{one_line(target)}'", hint=did_you_mean(target, columns)
            )
    if len(set(targets)) < len(targets):
        raise DataError(f"{name}: a target is named twice")
    features = [c for c in columns if c not in targets]
    if not features:
        raise DataError(f"{name}: no column is left for the inputs")
    if table.num_rows == 1:
        raise DataError(f"{name}: one row is not enough to learn from")
    x = np.column_stack([numeric_column(name, table, c) for c in features])  # (N, n_in)
    classes: tuple[str, ...] | None = None
    if any(_is_label(table, t) for t in targets):
        if len(targets) > 1:
            label = next(t for t in targets if _is_label(table, t))
            raise DataError(f"{name}: target '{label}' is text, and a classification has one target")
        classes, y = _one_hot(name, table, targets[0])
    else:
        y = np.column_stack([numeric_column(name, table, t) for t in targets])  # (N, n_out)
    return Dataset(
        name=path.stem,
        source=name,
        x=x,
        y=y,
        features=tuple(features),
        outputs=classes or tuple(targets),
        classes=classes,
        standardise=True,
    )


def read_table(path: Path) -> pa.Table:
    """Reads a CSV or Parquet file whole.

    Raises:
        DataError: The file is not readable, is empty, has no rows, or has two columns of one name.
    """
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    try:
        if path.suffix.lower() == ".csv":
            block = min(max(path.stat().st_size, 2**20), _LARGEST_BLOCK)
            # one thread: with several, Arrow does not know the number of a row that it complains of
            options = pyarrow.csv.ReadOptions(block_size=block, use_threads=False)
            table = pyarrow.csv.read_csv(path, read_options=options)
        else:
            table = pyarrow.parquet.ParquetFile(path).read()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {one_line(str(error))[:300]}") from None
    try:
        names = table.column_names
    except UnicodeDecodeError:
        raise DataError(f"{path}: the header is not UTF-8 text", hint="save the file as UTF-8") from None
    seen: set[str] = set()
    for column in names:
        if not column.strip():
            raise DataError(f"{path}: column {len(seen) + 1} has no name")
        if column in seen:
            raise DataError(f"{path}: two columns are called '{one_line(column)}'")
        seen.add(column)
    if table.num_rows == 0:
        raise DataError(f"{path}: there are no rows below the header")
    return table


def numeric_column(name: str, table: pa.Table, column: str) -> Array:
    """A column as float64, shape (N,).

    Raises:
        DataError: A value is missing, is not a number, or is not finite; the first such row is named.
    """
    import pyarrow as pa
    import pyarrow.types as kinds

    shown = one_line(column)
    data = table.column(column)
    if not _is_numeric(data.type):
        if kinds.is_null(data.type):
            raise DataError(f"{name}: column '{shown}' has no values")
        if kinds.is_binary(data.type) or kinds.is_large_binary(data.type):
            raise DataError(f"{name}: column '{shown}' is not UTF-8 text", hint="save the file as UTF-8")
        row, value = _first_non_number(data)
        raise DataError(
            f"{name}: column '{shown}' is not numeric: row {row} has {_quoted(value)}",
            hint="encode it as numbers, or leave the column out of the file",
        )
    try:
        values: npt.NDArray[Any] = data.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise DataError(f"{name}: column '{shown}' cannot be read as numbers: {error}") from None
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(bad.argmax())
        fault = "has no value" if math.isnan(values[row]) else "is not finite"
        raise DataError(f"{name}: column '{shown}' {fault} in row {row + 1}")
    too_large = np.abs(values) > np.finfo(np.float32).max
    if too_large.any():
        row = int(too_large.argmax())
        raise DataError(
            f"{name}: column '{shown}' is too large for 32 bits in row {row + 1}: {values[row]:g}"
        )
    return values.astype(np.float64)


def _is_numeric(kind: pa.DataType) -> bool:
    import pyarrow.types as kinds

    return bool(
        kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_boolean(kind) or kinds.is_decimal(kind)
    )


def _is_label(table: pa.Table, column: str) -> bool:
    import pyarrow.types as kinds

    kind = table.column(column).type
    if kinds.is_dictionary(kind):
        kind = kind.value_type
    text = (kinds.is_string, kinds.is_large_string, kinds.is_string_view, kinds.is_boolean)
    return any(is_kind(kind) for is_kind in text)


def _first_non_number(data: pa.ChunkedArray) -> tuple[int, object]:
    values = data.to_pylist()
    for row, value in enumerate(values, 1):
        try:
            float(value)
        except (TypeError, ValueError):
            return row, value
    return 1, values[0]


def _one_hot(name: str, table: pa.Table, column: str) -> tuple[tuple[str, ...], Array]:
    labels = table.column(column).to_pylist()
    for row, label in enumerate(labels, 1):
        if label is None or label == "":
            raise DataError(f"{name}: column '{one_line(column)}' has no value in row {row}")
    classes, index = np.unique([str(label) for label in labels], return_inverse=True)
    if len(classes) == 1:
        raise DataError(
            f"{name}: target '{one_line(column)}' has one class only: '{one_line(str(classes[0]))}'"
        )
    return tuple(str(c) for c in classes), np.eye(len(classes))[index]  # (N, n_classes)


def _quoted(value: object) -> str:
    return "no value" if value is None else f"'{one_line(str(value))[:60]}'"


def _shown(columns: Sequence[str]) -> str:
    return ", ".join(one_line(c) for c in columns[:20]) + (
        f" and {len(columns) - 20} more" if len(columns) > 20 else ""
    )
