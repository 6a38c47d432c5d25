"""Tables that are larger than memory should be: read in parts, laid out once in a file, and mapped.

They are checked as small ones are, before anything is trained. What differs: the kinds of a CSV file's
columns are those of its first megabytes, and a value further down that is of another kind is an error.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from layerlab.data.mapped import ArrayWriter, chunks
from layerlab.data.table import (
    MOST_CLASSES,
    check_classes,
    check_column_names,
    chosen_features,
    dataset_of,
    is_label,
    label_values,
    not_numeric,
    numeric_column,
    one_class,
    one_hot_rows,
    unreadable,
)
from layerlab.errors import DataError, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import pyarrow as pa

    from layerlab.data.dataset import Dataset
    from layerlab.tier import Array

# A table of more bytes than this, as float64, is not held in memory: reading it there takes several times
# as much.
LARGE = 2**28
# Bytes of a table that are read at once, and of a CSV file that say how many rows the others have.
BLOCK = 2**24


def is_large(path: Path) -> bool:
    """Whether a table is to be mapped, by what its numbers or, of a CSV file, the file itself take."""
    import pyarrow as pa
    import pyarrow.parquet

    if path.suffix.lower() == ".csv":
        file_bytes = path.stat().st_size
        # a number and what separates it take two bytes at least, and eight as float64
        if not LARGE / 4 < file_bytes <= LARGE:
            return file_bytes > LARGE
        try:
            parts = _Parts(path)
        except DataError:
            return False  # whoever reads it says what is wrong
        return parts.expected_rows * len(parts.schema) * 8 > LARGE
    try:
        about = pyarrow.parquet.read_metadata(path)
    except (pa.ArrowException, OSError):
        return False
    return bool(about.num_rows * about.num_columns * 8 > LARGE)


def large_table_dataset(path: Path, targets: Sequence[str], told: Callable[[str], None]) -> Dataset:
    """As `layerlab.data.table.table_dataset`, with inputs and targets in mapped files.

    Args:
        path: A CSV or Parquet file.
        targets: Names of the target columns.
        told: Told how far it is.

    Raises:
        DataError: The file cannot be read, a column cannot be learned from, or there is no room for it.
    """
    name = str(path)
    parts = _Parts(path)
    columns = parts.schema.names
    check_column_names(name, columns)
    features = chosen_features(name, columns, targets)
    labels = _Labels(name, targets[0]) if is_label(name, parts.schema, targets) else None
    with (
        ArrayWriter(name, len(features), np.float64, least_rows=parts.least_rows) as x_out,
        ArrayWriter(name, len(targets), np.float64, least_rows=parts.least_rows) as y_out,
    ):
        for table, first_row, share in parts.tables():
            told(f"reading the data: {one_line(name)}: {share:.0%}")
            x_out.append(np.column_stack([numeric_column(name, table, c, first_row) for c in features]))
            if labels is None:
                y_out.append(np.column_stack([numeric_column(name, table, t, first_row) for t in targets]))
            else:
                labels.add(table, first_row)
        x = x_out.mapped()
        classes, y = labels.one_hot() if labels is not None else (None, y_out.mapped())
    return dataset_of(path, x, y, features, targets, classes)


class _Labels:
    """The labels of a classification, as numbers until all classes are known."""

    def __init__(self, name: str, column: str) -> None:
        self._name, self._column = name, column
        self._codes: dict[str, int] = {}
        self._parts: list[Any] = []

    def add(self, table: pa.Table, first_row: int) -> None:
        values = label_values(self._name, table, self._column, first_row)
        codes = (self._codes.setdefault(value, len(self._codes)) for value in values)
        self._parts.append(np.fromiter(codes, np.int32, len(values)))
        if len(self._codes) > MOST_CLASSES:  # those to come would only take memory
            check_classes(self._name, self._column, len(self._codes), first_row + len(values))

    def one_hot(self) -> tuple[tuple[str, ...], Array]:
        classes = tuple(sorted(self._codes))
        if len(classes) == 1:
            raise one_class(self._name, self._column, classes[0])
        codes = np.concatenate(self._parts)
        check_classes(self._name, self._column, len(classes), len(codes))
        place = np.empty(len(classes), np.intp)
        for i, label in enumerate(classes):
            place[self._codes[label]] = i
        with ArrayWriter(self._name, len(classes), np.float64, least_rows=len(codes)) as out:
            for part in chunks(codes, len(classes)):
                out.append(one_hot_rows(place[part], len(classes)))
            return classes, out.mapped()


class _Parts:
    """A file, a part at a time.

    Attributes:
        schema: Its columns.
        expected_rows: How many rows it has; of a CSV file, if all are as long as those of its first part.
        least_rows: How many it has at least; of a CSV file, if they are at most twice as long as those.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet

        self._path = path
        file_bytes = path.stat().st_size
        try:
            if path.suffix.lower() == ".csv":
                with self._csv({}) as reader:
                    self.schema = reader.schema
                    first = next(iter(reader), None)
                self._kinds = {field.name: _read_as(field.type) for field in self.schema}
                rows = 0 if first is None else first.num_rows
                self.expected_rows = rows * file_bytes // min(BLOCK, file_bytes)
                self.least_rows = self.expected_rows // 2
            else:
                with pyarrow.parquet.ParquetFile(path) as file:
                    self.schema = file.schema_arrow
                    self.expected_rows = self.least_rows = file.metadata.num_rows
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise unreadable(str(path), error) from None

    def tables(self) -> Iterator[tuple[pa.Table, int, float]]:
        """Tables of some megabytes, the number of rows before each, and the share that is read by then."""
        import pyarrow as pa

        rows = 0
        try:
            for batch in self._batches():
                if batch.num_rows:
                    share = min(1.0, (rows + batch.num_rows) / max(1, self.expected_rows))
                    yield pa.Table.from_batches([batch]), rows, share
                    rows += batch.num_rows
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise self._refusal(error) from None
        if rows <= 1:
            raise unreadable(str(self._path), ValueError("there are too few rows"))

    def _batches(self) -> Iterator[pa.RecordBatch]:
        import pyarrow.parquet

        if self._path.suffix.lower() == ".csv":
            with self._csv(self._kinds) as reader:
                yield from reader
            return
        # Buffered and not read ahead: a row group may be as large as the file.
        with pyarrow.parquet.ParquetFile(self._path, buffer_size=2**20, pre_buffer=False) as file:
            yield from file.iter_batches(max(1, BLOCK // (8 * len(self.schema))), use_threads=False)

    def _csv(self, kinds: dict[str, Any]) -> Any:
        import pyarrow.csv

        return pyarrow.csv.open_csv(
            self._path,
            # one thread: with several, Arrow does not know the number of a row that it complains of
            read_options=pyarrow.csv.ReadOptions(block_size=BLOCK, use_threads=False),
            convert_options=pyarrow.csv.ConvertOptions(column_types=kinds),
        )

    def _refusal(self, error: BaseException) -> DataError:
        """What is said of a value of another kind than those above it, or of a file that is not read."""
        import pyarrow as pa

        found = re.match(
            r"In CSV column #(\d+): Row #(\d+): .*? invalid (value|UTF8)(.*)", str(error), re.DOTALL
        )
        if found is None:
            return unreadable(str(self._path), error)
        field, row = self.schema.field(int(found[1])), int(found[2]) - 1  # Arrow counts the header
        if found[3] == "UTF8":
            return DataError(
                f"{self._path}: column '{one_line(field.name)}' is not UTF-8 text in row {row}",
                hint="save the file as UTF-8",
            )
        value = found[4][2:-1]
        if pa.types.is_boolean(field.type):
            return DataError(
                f"{self._path}: column '{one_line(field.name)}' begins with true and false: "
                f"row {row} has '{one_line(value)[:60]}'",
                hint="write all values of a column in one way",
            )
        return not_numeric(str(self._path), field.name, row, value)


def _read_as(kind: pa.DataType) -> pa.DataType:
    """What a column of a CSV file is read as: whole numbers at its beginning may be followed by others."""
    import pyarrow as pa
    import pyarrow.types as kinds

    number = kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_null(kind)
    return pa.float64() if number else kind
