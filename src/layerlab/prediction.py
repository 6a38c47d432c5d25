"""Predictions for tables of raw columns, from an exported file alone."""

from __future__ import annotations

import csv
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np

from layerlab.data import check_table
from layerlab.data.table import numeric_column, read_table
from layerlab.errors import DataError, InputError, ModelError, did_you_mean, one_line
from layerlab.folder import written_whole
from layerlab.modelfile import ModelFile

if TYPE_CHECKING:
    from layerlab.tier import Array

ROWS_AT_ONCE = 8192
# Where a spreadsheet begins to compute: at the start of a cell, in whatever way it splits the line. The last
# four are what East Asian keyboards write.
_FORMULA = re.compile(r'(^|[;,|])([\s"]*)(?=[=+\-@\uff1d\uff0b\uff0d\uff20])')


@dataclass(frozen=True)
class Predicted:
    """Predictions of a table.

    Attributes:
        columns: Names of the outputs, n_out of them.
        values: Predictions, shape (N, n_out): in the target's units, or one score a class.
        labels: The class with the highest score, a row each; None for a regression.
    """

    columns: list[str]
    values: Array
    labels: list[str] | None


def predict_table(model_path: Path, rows_path: Path) -> Predicted:
    """Runs a model on the rows of a CSV or Parquet file; columns are found by name, others are ignored.

    Raises:
        InputError: A file is missing, or the model does not say which columns it takes.
        DataError: A column is missing or is not numeric.
        ModelError: The model cannot be run.
    """
    check_table(str(rows_path))
    model = ModelFile(model_path)
    features = model.metadata.get("features")
    if not isinstance(features, list) or len(features) != model.n_in:
        raise InputError(
            f"{model_path}: the model does not say which columns it takes",
            hint="was it exported by layerlab?",
        )
    table = read_table(rows_path)
    for feature in features:
        if feature not in table.column_names:
            raise DataError(
                f"{rows_path}: there is no column '{one_line(feature)}', which the model takes",
                hint=did_you_mean(feature, table.column_names),
            )
    x = np.column_stack([numeric_column(str(rows_path), table, f) for f in features])  # (N, n_in)
    values = np.concatenate(
        [model.run(part) for part in np.split(x, range(ROWS_AT_ONCE, len(x), ROWS_AT_ONCE))]
    )
    classes = model.metadata.get("classes")
    for names in (classes, model.metadata.get("outputs")):
        if names is not None and len(names) != values.shape[1]:
            raise ModelError(f"{model_path}: {len(names)} names for {values.shape[1]} outputs")
    labels = [classes[i] for i in values.argmax(axis=1)] if classes else None
    columns = model.metadata.get("outputs") or [f"y{i}" for i in range(values.shape[1])]
    return Predicted(list(columns), values, labels)


def write_csv(predicted: Predicted, path: Path | None) -> None:
    """Writes predictions: the class first, where there are classes, then one column an output.

    Raises:
        InputError: The file cannot be written; it is as it was.
    """
    if path is None:
        _write(predicted, sys.stdout)
        return
    try:
        with written_whole(path) as file:
            _write(predicted, file)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def _write(predicted: Predicted, file: TextIO) -> None:
    writer = csv.writer(file, lineterminator="\n")
    lead = [] if predicted.labels is None else ["class"]
    writer.writerow([*lead, *map(harmless, predicted.columns)])
    shown = {label: harmless(label) for label in set(predicted.labels or ())}
    for i, row in enumerate(predicted.values.tolist()):
        writer.writerow([*([] if predicted.labels is None else [shown[predicted.labels[i]]]), *row])


def harmless(name: str) -> str:
    """A name as it may stand in a CSV file: one printable line that no spreadsheet takes for a formula.

    Names of columns and classes are whatever was in somebody's table, or in somebody's model file. An
    apostrophe before what would be a formula makes it text (https://owasp.org/www-community/attacks/CSV_Injection).
    A number, or a sign alone, computes nothing and stays as it is.
    """
    line = one_line(name)
    if len(line) <= 1:
        return line
    try:
        float(line)
    except ValueError:
        return _FORMULA.sub(r"\1\2'", line)
    return line
