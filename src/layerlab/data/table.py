"""Tables of the user's own: CSV and Parquet files, checked before anything is trained on them.

Every complaint names the file and the column, and the row by its place among the rows of data, from 1.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from layerlab.data.dataset import Dataset
from layerlab.data.mapped import size
from layerlab.errors import DataError, did_you_mean, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt
    import pyarrow as pa

    from layerlab.tier import Array

# Arrow infers a column's type from its first block: one block for the whole file, up to Arrow's limit.
_LARGEST_BLOCK = 2**31 - 1
# Of more classes than this, each is to have two rows on average.
MANY_CLASSES = 100
# More classes than this are not told apart.
MOST_CLASSES = 2**16
# Bytes of the one-hot targets of a table that is held in memory.
LARGEST_ONE_HOT = 2**31


def table_dataset(path: Path, targets: Sequence[str]) -> Dataset:
    """Reads a table and takes the named columns as targets, all others as inputs.

    Numeric targets make a regression; one target of text or booleans makes a classification.

    Raises:
        DataError: The file cannot be read, or a column cannot be learned from.
    """
    name, table = str(path), read_table(path)
    features = chosen_features(name, table.column_names, targets)
    if table.num_rows == 1:
        raise DataError(f"{name}: one row is not enough to learn from")
    x = np.column_stack([numeric_column(name, table, c) for c in features])  # (N, n_in)
    classes: tuple[str, ...] | None = None
    if is_label(name, table.schema, targets):
        classes, y = _one_hot(name, table, targets[0])
    else:
        y = np.column_stack([numeric_column(name, table, t) for t in targets])  # (N, n_out)
    return dataset_of(path, x, y, features, targets, classes)


def dataset_of(
    path: Path,
    x: Array,
    y: Array,
    features: Sequence[str],
    targets: Sequence[str],
    classes: tuple[str, ...] | None,
) -> Dataset:
    """The data set of a table's file: x of shape (N, n_in), y of shape (N, n_out), one-hot for classes."""
    return Dataset(
        name=path.stem,
        source=str(path),
        x=x,
        y=y,
        features=tuple(features),
        outputs=classes or tuple(targets),
        classes=classes,
        standardise=True,
    )


def _cure(name: str, target: str, columns: Sequence[str]) -> str | None:
    """A hint for a target that is not among the columns."""
    comma = len(columns) == 1 and not name.lower().endswith(".parquet")
    if comma and (apart := next((c for c in ";\t|" if c in columns[0]), None)):
        shown = "a tab" if apart == "\t" else f"'{apart}'"
        return f"its columns seem to be separated by {shown}: a comma is what is read"
    return did_you_mean(target, columns)


def chosen_features(name: str, columns: Sequence[str], targets: Sequence[str]) -> list[str]:
    """The columns that are not targets.

    Raises:
        DataError: No target is named, or one that is not there, or one twice, or no column is left.
    """
    if not targets:
        raise DataError(
            f"{name}: which column is to be learned?", hint=f"--target COLUMN, of: {_shown(columns)}"
        )
    for target in targets:
        if target not in columns:
            raise DataError(
                f"{name}: there is no column '{one_line(target)}'", hint=_cure(name, target, columns)
            )
    if len(set(targets)) < len(targets):
        raise DataError(f"{name}: a target is named twice")
    features = [c for c in columns if c not in targets]
    if not features:
        raise DataError(f"{name}: no column is left for the inputs")
    return features


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
        raise unreadable(str(path), error) from None
    try:
        names = table.column_names
    except UnicodeDecodeError as error:
        raise unreadable(str(path), error) from None
    check_column_names(str(path), names)
    if table.num_rows == 0:
        raise DataError(f"{path}: there are no rows below the header")
    return table


def unreadable(name: str, error: BaseException) -> DataError:
    """What is said of a file that Arrow does not read."""
    if isinstance(error, UnicodeDecodeError):
        return DataError(f"{name}: the header is not UTF-8 text", hint="save the file as UTF-8")
    # Arrow counts the header
    said = re.sub(r"\bRow #(\d+)", lambda found: f"row {int(found[1]) - 1}", str(error), count=1)
    return DataError(f"{name}: cannot be read: {one_line(said)[:300]}")


def check_column_names(name: str, columns: Sequence[str]) -> None:
    """Refuses columns that cannot be told apart.

    Raises:
        DataError: A column has no name, or two have one.
    """
    seen: set[str] = set()
    for column in columns:
        if not column.strip():
            raise DataError(f"{name}: column {len(seen) + 1} has no name")
        if column in seen:
            raise DataError(f"{name}: two columns are called '{one_line(column)}'")
        seen.add(column)


def numeric_column(name: str, table: pa.Table, column: str, first_row: int = 0) -> Array:
    """A column as float64, shape (N,); ``first_row`` rows of the file came before the table.

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
            raise _not_text(name, column)
        values = _python_values(name, data, column)
        row, value = _first_non_number(values) or (1, values[0])
        raise not_numeric(name, column, first_row + row, value)
    try:
        numbers: npt.NDArray[Any] = data.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise DataError(f"{name}: column '{shown}' cannot be read as numbers: {error}") from None
    bad = ~np.isfinite(numbers)
    if bad.any():
        row = int(bad.argmax())
        fault = "has no value" if math.isnan(numbers[row]) else "is not finite"
        raise DataError(f"{name}: column '{shown}' {fault} in row {first_row + row + 1}")
    too_large = np.abs(numbers) > np.finfo(np.float32).max
    if too_large.any():
        row = int(too_large.argmax())
        raise DataError(
            f"{name}: column '{shown}' is too large for 32 bits in row {first_row + row + 1}: "
            f"{numbers[row]:g}"
        )
    return numbers.astype(np.float64)


def _python_values(name: str, data: pa.ChunkedArray, column: str) -> list[Any]:
    """What is in a column, as Python sees it; shape (N,).

    Raises:
        DataError: It cannot see it: text that is none, or a date that no calendar has.
    """
    try:
        values: list[Any] = data.to_pylist()
    except UnicodeDecodeError:
        raise _not_text(name, column) from None
    except (ValueError, OverflowError):
        shown = f"column '{one_line(column)}' of type {one_line(str(data.type))[:60]}"
        raise DataError(f"{name}: {shown} has a value that cannot be read") from None
    return values


def _not_text(name: str, column: str) -> DataError:
    return DataError(f"{name}: column '{one_line(column)}' is not UTF-8 text", hint="save the file as UTF-8")


def not_numeric(name: str, column: str, row: int, value: object) -> DataError:
    """What is said of text among numbers."""
    return DataError(
        f"{name}: column '{one_line(column)}' is not numeric: row {row} has {_quoted(value)}",
        hint="encode it as numbers, or leave the column out of the file",
    )


def _is_numeric(kind: pa.DataType) -> bool:
    import pyarrow.types as kinds

    return bool(
        kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_boolean(kind) or kinds.is_decimal(kind)
    )


def is_label(name: str, schema: pa.Schema, targets: Sequence[str]) -> bool:
    """Whether the targets make a classification: one of text, or of booleans.

    Raises:
        DataError: One of several targets is text.
    """
    labels = [target for target in targets if _is_text(schema.field(target).type)]
    if labels and len(targets) > 1:
        raise DataError(f"{name}: target '{labels[0]}' is text, and a classification has one target")
    return bool(labels)


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow.types as kinds

    if kinds.is_dictionary(kind):
        kind = kind.value_type
    text = (kinds.is_string, kinds.is_large_string, kinds.is_string_view, kinds.is_boolean)
    return any(is_kind(kind) for is_kind in text)


def _first_non_number(values: Sequence[Any]) -> tuple[int, object] | None:
    """The first value that is there and is not a number: its row, from 1, and itself."""
    for row, value in enumerate(values, 1):
        try:
            float(0 if value is None else value)
        except (TypeError, ValueError):
            return row, value
    return None


def label_values(name: str, table: pa.Table, column: str, first_row: int = 0) -> list[str]:
    """The labels of a column, as text; ``first_row`` rows of the file came before the table.

    Raises:
        DataError: A row has none.
    """
    labels = _python_values(name, table.column(column), column)
    for row, label in enumerate(labels, first_row + 1):
        if label is None or label == "":
            raise DataError(f"{name}: column '{one_line(column)}' has no value in row {row}")
    return [str(label) for label in labels]


def one_class(name: str, column: str, label: str) -> DataError:
    """What is said of a classification with nothing to tell apart."""
    return DataError(f"{name}: target '{one_line(column)}' has one class only: '{one_line(label)}'")


def check_classes(name: str, column: str, classes: int, rows: int) -> None:
    """Refuses labels that rather name the rows than sort them.

    Raises:
        DataError: There are too many.
    """
    if classes > MOST_CLASSES or (classes > MANY_CLASSES and 2 * classes > rows):
        raise DataError(
            f"{name}: target '{one_line(column)}' has too many classes: {classes} in {rows} rows",
            hint="a column that names each row cannot be learned: choose another with --target",
        )


def one_hot_rows(index: npt.NDArray[Any], classes: int) -> Array:
    """Rows with a 1 at each index, shape (N, classes)."""
    rows = np.zeros((len(index), classes))
    rows[np.arange(len(index)), index] = 1
    return rows


def _one_hot(name: str, table: pa.Table, column: str) -> tuple[tuple[str, ...], Array]:
    classes, index = np.unique(label_values(name, table, column), return_inverse=True)
    if len(classes) == 1:
        raise one_class(name, column, str(classes[0]))
    check_classes(name, column, len(classes), len(index))
    needed = len(index) * len(classes) * 8
    if needed > LARGEST_ONE_HOT:
        raise DataError(
            f"{name}: target '{one_line(column)}' has too many classes: {len(classes)} in {len(index)} rows "
            f"take {size(needed)}",
            hint="put rare classes together, or train on fewer rows",
        )
    return tuple(str(c) for c in classes), one_hot_rows(index, len(classes))


def _quoted(value: object) -> str:
    return "no value" if value is None else f"'{one_line(str(value))[:60]}'"


def _shown(columns: Sequence[str]) -> str:
    return ", ".join(one_line(c) for c in columns[:20]) + (
        f" and {len(columns) - 20} more" if len(columns) > 20 else ""
    )
