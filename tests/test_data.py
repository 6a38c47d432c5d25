"""Data: what is drawn, bundled or read, how it is split and scaled, and what its models answer."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import sklearn.datasets

import layerlab
from layerlab.data import load_dataset, load_prepared
from layerlab.data.dataset import Dataset, Scaler, prepare
from layerlab.data.random import random_dataset
from layerlab.data.table import table_dataset
from layerlab.errors import DataError, Interrupted
from layerlab.folder import written_whole
from layerlab.spec import DataSpec, build_spec

SHAPES = {
    "digits": (1797, 64, 10),
    "breast_cancer": (569, 30, 2),
    "diabetes": (442, 10, 1),
    "wine": (178, 13, 3),
    "iris": (150, 4, 3),
    "linnerud": (20, 3, 3),
}


def dataset(y: Any, classes: tuple[str, ...] | None = None, *, x: Any = None) -> Dataset:
    """A data set with these targets, and row numbers as its only input."""
    x = np.arange(len(y), dtype=float)[:, None] if x is None else x
    features = tuple(f"f{i}" for i in range(x.shape[1]))
    outputs = classes or tuple(f"t{i}" for i in range(y.shape[1]))
    return Dataset("made", "generated", x, y, features, outputs, classes, standardise=True)


def labelled(*counts: int) -> Dataset:
    """A classification with so many rows of each class."""
    classes = tuple(f"c{i}" for i in range(len(counts)))
    return dataset(np.eye(len(counts))[np.repeat(np.arange(len(counts)), counts)], classes)


# The random problem.


def test_random_data_is_the_same_for_the_same_seed() -> None:
    """Seed and sizes say it all; another seed gives other numbers."""
    spec = DataSpec(n=6, d_in=4, d_out=2)
    first, second, other = (random_dataset(spec, seed) for seed in (3, 3, 4))
    assert (first.x == second.x).all()
    assert (first.y == second.y).all()
    assert first.digest == second.digest
    assert first.digest != other.digest
    assert not (first.x == other.x).any()


def test_random_data_has_the_sizes_asked_for() -> None:
    """64 rows, 1000 inputs and 10 outputs unless told; a regression that is not standardised."""
    default, small = random_dataset(DataSpec(), 0), random_dataset(DataSpec(n=6, d_in=4, d_out=2), 0)
    assert (default.x.shape, default.y.shape) == ((64, 1000), (64, 10))
    assert (small.x.shape, small.y.shape) == ((6, 4), (6, 2))
    assert (small.features, small.outputs) == (("x0", "x1", "x2", "x3"), ("y0", "y1"))
    assert (small.task, small.classes, small.standardise) == ("regression", None, False)
    assert prepare(small, val_fraction=0.5, seed=0).scaler is None


def test_random_data_is_standard_normal() -> None:
    """64,000 draws: mean and standard deviation within five standard errors of 0 and 1."""
    x = random_dataset(DataSpec(), 0).x
    assert x.mean() == pytest.approx(0, abs=5 / np.sqrt(x.size))
    assert x.std() == pytest.approx(1, abs=5 / np.sqrt(2 * x.size))


# The split.


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize(
    "made",
    [labelled(50, 30, 20), labelled(97, 3), dataset(np.zeros((101, 2)))],
    ids=["three", "rare", "none"],
)
def test_a_split_is_a_partition(made: Dataset, fraction: float) -> None:
    """Every row is in one of the two parts, and the parts have the sizes asked for."""
    data = prepare(made, val_fraction=fraction, seed=0)
    assert sorted([*data.train, *data.val]) == list(range(len(made.x)))
    assert len(data.val) == round(fraction * len(made.x))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("counts", [(50, 30, 20), (90, 10), (40, 40, 40, 40), (95, 5)])
def test_a_classification_keeps_the_share_of_every_class(counts: tuple[int, ...], seed: int) -> None:
    """Of each class a fifth of its rows is kept for validation, to within one row."""
    data = prepare(labelled(*counts), val_fraction=0.2, seed=seed)
    kept = data.dataset.y[data.val].sum(axis=0)
    assert (np.abs(kept - 0.2 * np.array(counts)) < 1).all()


def test_no_validation_keeps_every_row_in_order() -> None:
    """A fraction of 0 leaves nothing for validation."""
    data = prepare(labelled(3, 4), val_fraction=0, seed=0)
    assert (data.train.tolist(), data.val.tolist()) == (list(range(7)), [])


def test_a_split_is_the_same_for_the_same_seed() -> None:
    """And another one for another seed."""
    made = labelled(50, 50)
    first, second, other = (prepare(made, val_fraction=0.2, seed=s).val.tolist() for s in (1, 1, 2))
    assert first == second
    assert first != other


def test_a_small_fraction_keeps_one_row() -> None:
    """Validation that was asked for takes place."""
    assert len(prepare(labelled(5, 5), val_fraction=0.001, seed=0).val) == 1


@pytest.mark.parametrize(("rows", "fraction"), [(1, 0.2), (2, 0.8), (4, 0.9), (10, 0.99)])
def test_too_few_rows_to_split_are_refused(rows: int, fraction: float) -> None:
    """Data, rows and fraction are named, and the way out."""
    with pytest.raises(DataError, match=rf"^made: {rows} rows? .*too few to keep {fraction:g}") as raised:
        prepare(dataset(np.zeros((rows, 1))), val_fraction=fraction, seed=0)
    assert raised.value.hint == "--val-fraction 0 trains on all rows"


# The standardisation.


def test_the_scaler_knows_the_training_rows_only() -> None:
    """Mean and standard deviation are those of the training rows, whatever the validation rows are."""
    rng = np.random.default_rng(0)
    made = dataset(rng.standard_normal((40, 2)) * 9 + 5, x=rng.standard_normal((40, 3)) * [1, 10, 100])
    data = prepare(made, val_fraction=0.25, seed=0)
    x, y = made.x[data.train], made.y[data.train]
    assert data.scaler is not None
    np.testing.assert_allclose(data.scaler.x_mean, x.mean(axis=0))
    np.testing.assert_allclose(data.scaler.x_std, x.std(axis=0))
    np.testing.assert_allclose(data.scaler.y_mean, y.mean(axis=0))
    np.testing.assert_allclose(data.scaler.y_std, y.std(axis=0))
    made.x[data.val] += 1e6
    again = prepare(made, val_fraction=0.25, seed=0)
    assert (again.scaler.x_mean == data.scaler.x_mean).all()


def test_training_arrays_are_standardised_and_validation_arrays_by_the_same_rule() -> None:
    """Mean 0 and deviation 1 over the training rows; one rule for both parts."""
    rng = np.random.default_rng(0)
    made = dataset(rng.standard_normal((40, 1)) * 9 + 5, x=rng.standard_normal((40, 3)) * 7 - 2)
    data = prepare(made, val_fraction=0.25, seed=0)
    for array in data.arrays(data.train):
        np.testing.assert_allclose(array.mean(axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(array.std(axis=0), 1)
    x_val, y_val = data.arrays(data.val)
    np.testing.assert_allclose(x_val * data.scaler.x_std + data.scaler.x_mean, made.x[data.val])
    np.testing.assert_allclose(data.scaler.restore_y(y_val), made.y[data.val])


@pytest.mark.parametrize("value", [0.0, 3.0, 0.1, -1e9, 1 / 3])
def test_a_constant_column_has_scale_one(value: float) -> None:
    """Its computed deviation is rounding, not information: it becomes 0 exactly, and nothing is NaN."""
    x = np.column_stack([np.full(11, value), np.arange(11.0)])
    scaler = Scaler.fit(x, np.full((11, 1), value), np.arange(11), scale_targets=True)
    assert (scaler.x_std[0], scaler.y_std[0]) == (1.0, 1.0)
    assert (scaler.standardise_x(x)[:, 0] == 0).all()
    assert (scaler.standardise_y(np.full((11, 1), value)) == 0).all()
    assert (scaler.restore_y(np.zeros((2, 1))) == value).all()
    assert np.isfinite(scaler.standardise_x(x)).all()


def test_one_hot_targets_are_not_scaled() -> None:
    """The targets of a classification stay 0 and 1."""
    data = prepare(labelled(9, 1), val_fraction=0.2, seed=0)
    assert (data.scaler.y_mean.tolist(), data.scaler.y_std.tolist()) == ([0, 0], [1, 1])
    assert set(data.arrays(data.train)[1].ravel()) == {0.0, 1.0}


# The bundled sets.


@pytest.mark.parametrize("name", SHAPES)
def test_bundled_sets_are_those_of_scikit_learn(name: str) -> None:
    """Rows, inputs, targets and names are what scikit-learn says; a classification is one-hot."""
    made = load_dataset(build_spec(flags={"data": name}))
    bunch = getattr(sklearn.datasets, f"load_{name}")()
    rows, n_in, n_out = SHAPES[name]
    assert (made.x.shape, made.y.shape) == ((rows, n_in), (rows, n_out))
    assert (made.x == bunch.data).all()
    assert made.features == tuple(bunch.feature_names)
    assert len(made.outputs) == n_out
    assert made.standardise
    if name in ("diabetes", "linnerud"):
        assert (made.task, made.classes) == ("regression", None)
        assert (made.y == bunch.target.reshape(rows, n_out)).all()
    else:
        assert made.task == "classification"
        assert made.classes == made.outputs == tuple(str(c) for c in bunch.target_names)
        assert (made.y.argmax(axis=1) == bunch.target).all()
        assert (np.sort(made.y, axis=1) == [0.0] * (n_out - 1) + [1.0]).all()


def test_the_outputs_of_linnerud_have_their_names() -> None:
    """Several numeric targets keep the names they have."""
    assert load_dataset(build_spec(flags={"data": "linnerud"})).outputs == ("Weight", "Waist", "Pulse")


# Tables.


def table(folder: Path, suffix: str, **columns: Any) -> Path:
    """A table as a file of some kind."""
    path = folder / f"made.{suffix}"
    arrow = pa.table(columns)
    if suffix == "csv":
        pyarrow.csv.write_csv(arrow, path)
    else:
        pyarrow.parquet.write_table(arrow, path)
    return path


@pytest.mark.parametrize("kind", ["csv", "parquet", "pq", "CSV", "PARQUET"])
def test_a_table_is_read_as_numbers(tmp_path: Path, kind: str) -> None:
    """Integers, fractions and booleans are numbers; inputs keep their order, targets theirs."""
    path = tmp_path / f"made.{kind}"
    table(tmp_path, kind.lower(), a=[1, 2, 3], t=[0.5, 1.5, 2.5], b=[True, False, True], u=[7, 8, 9]).replace(
        path
    )
    made = table_dataset(path, ["u", "t"])
    assert (made.features, made.outputs) == (("a", "b"), ("u", "t"))
    assert made.x.tolist() == [[1, 1], [2, 0], [3, 1]]
    assert made.y.tolist() == [[7, 0.5], [8, 1.5], [9, 2.5]]
    assert (made.x.dtype, made.y.dtype) == (np.float64, np.float64)
    assert (made.name, made.source) == ("made", str(path))
    assert (made.task, made.classes, made.standardise) == ("regression", None, True)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_text_target_makes_a_classification(tmp_path: Path, kind: str) -> None:
    """One output a class, in the order of their names, whatever the order of the rows."""
    path = table(tmp_path, kind, a=[1.0, 2.0, 3.0, 4.0], kind=["pear", "apple", "pear", "fig"])
    made = table_dataset(path, ["kind"])
    assert made.task == "classification"
    assert made.classes == made.outputs == ("apple", "fig", "pear")
    assert made.y.tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_boolean_target_makes_a_classification(tmp_path: Path, kind: str) -> None:
    """True and false are two classes."""
    path = table(tmp_path, kind, a=[1.0, 2.0, 3.0], sold=[True, False, True])
    made = table_dataset(path, ["sold"])
    assert made.classes == ("False", "True")
    assert made.y.tolist() == [[0, 1], [1, 0], [0, 1]]


@pytest.mark.parametrize("kind", ["dictionary", "string", "large_string", "string_view"])
def test_a_parquet_target_of_any_kind_of_text_makes_a_classification(tmp_path: Path, kind: str) -> None:
    """Categories of pandas, and every kind of text that Arrow has."""
    labels = pa.array(["b", "a", "b", "a"])
    column = labels.dictionary_encode() if kind == "dictionary" else labels.cast(getattr(pa, kind)())
    made = table_dataset(table(tmp_path, "parquet", a=[1.0, 2.0, 3.0, 4.0], t=column), ["t"])
    assert made.classes == ("a", "b")
    assert made.y.tolist() == [[0, 1], [1, 0], [0, 1], [1, 0]]


@pytest.mark.parametrize(
    "kind", [pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.decimal128(9, 2), pa.bool_()], ids=str
)
def test_every_kind_of_number_in_parquet_is_an_input(tmp_path: Path, kind: pa.DataType) -> None:
    """Integers, floating point numbers, decimals and booleans of any width."""
    column = pa.array([1.0, 0.0, 1.0]).cast(kind)
    made = table_dataset(table(tmp_path, "parquet", a=column, t=[1.0, 2.0, 3.0]), ["t"])
    assert made.x.ravel().tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([1.0, None, 3.0]), "column 'a' has no value in row 2"),
        (pa.array([1.0, 2.0, float("-inf")]), "column 'a' is not finite in row 3"),
        (pa.array([None, None, None], pa.float64()), "column 'a' has no value in row 1"),
        (pa.nulls(3), "column 'a' has no values"),
        (pa.array(["1", "x", "3"]), "column 'a' is not numeric: row 2 has 'x'"),
        (pa.array([[1], [2], [3]]), "column 'a' is not numeric: row 1 has '[1]'"),
        (
            pa.array([0, 1, 2], pa.timestamp("s")),
            "column 'a' is not numeric: row 1 has '1970-01-01 00:00:00'",
        ),
    ],
)
def test_a_parquet_column_that_is_no_number_is_named(tmp_path: Path, column: pa.Array, message: str) -> None:
    """With the first row that is not."""
    path = table(tmp_path, "parquet", a=column, t=[1.0, 2.0, 3.0])
    with pytest.raises(DataError) as raised:
        table_dataset(path, ["t"])
    assert str(raised.value) == f"{path}: {message}"


def test_a_missing_class_is_named(tmp_path: Path) -> None:
    """A label that is not there is no class of its own."""
    path = table(tmp_path, "parquet", a=[1.0, 2.0, 3.0], t=pa.array(["x", "y", None]).dictionary_encode())
    with pytest.raises(DataError, match="column 't' has no value in row 3"):
        table_dataset(path, ["t"])


def test_a_column_that_names_each_row_is_refused(tmp_path: Path) -> None:
    """One line, before a square of 40,000 classes is asked for; 100 classes of a row each are let through."""
    names = [f"n{i}" for i in range(40_000)]
    path = table(tmp_path, "csv", a=np.arange(40_000), t=names)
    with pytest.raises(DataError) as raised:
        table_dataset(path, ["t"])
    assert str(raised.value) == f"{path}: target 't' has too many classes: 40000 in 40000 rows"
    assert "--target" in str(raised.value.hint)
    few = table_dataset(table(tmp_path, "csv", a=np.arange(100), t=names[:100]), ["t"])
    assert (few.y == np.eye(100)[np.argsort(np.argsort(names[:100]))]).all()


def test_one_hot_targets_that_memory_should_not_hold_are_refused(tmp_path: Path) -> None:
    """5,000 classes of 100 rows each would be 20 GB."""
    path = table(tmp_path, "parquet", a=np.zeros(500_000), t=np.char.mod("n%d", np.arange(500_000) % 5000))
    with pytest.raises(DataError) as raised:
        table_dataset(path, ["t"])
    said = f"{path}: target 't' has too many classes: 5000 in 500000 rows take 20.0 GB"
    assert str(raised.value) == said
    assert raised.value.hint


def test_a_ragged_row_is_named_by_its_place_among_the_rows(tmp_path: Path) -> None:
    """As in every other complaint the header does not count."""
    path = tmp_path / "made.csv"
    path.write_text("a,t\n1,2\n3,4\n5,6,7\n")
    with pytest.raises(DataError, match=r"row 3: Expected 2 columns, got 3: 5,6,7$"):
        table_dataset(path, ["t"])


def test_a_late_text_is_found_in_a_long_table(tmp_path: Path) -> None:
    """The type of a column is that of all its rows, however long the file: no row is cut off."""
    path = tmp_path / "long.csv"
    path.write_text("a,t\n" + "1,2\n" * 400_000 + "x,2\n")
    with pytest.raises(DataError, match="column 'a' is not numeric: row 400001 has 'x'"):
        table_dataset(path, ["t"])


@pytest.mark.parametrize("value", [1e200, -1e300])
@pytest.mark.parametrize("column", ["area", "price"])
def test_numbers_too_large_are_refused_wherever_the_split_puts_them(
    empty_folder: Path, column: str, value: float
) -> None:
    """A number whose square is infinite spoils the training, and as a validation row the figures."""
    columns = {"area": [1.0, 2.0, 3.0, 4.0, 5.0], "price": [10.0, 20.0, 30.0, 40.0, 50.0]}
    flags = {"data": table(empty_folder, "csv", **columns).name, "target": ["price"]}
    parts = {4 in load_prepared(build_spec(flags={**flags, "seed": seed})).val for seed in range(20)}
    assert parts == {True, False}, "the last row is in either part"
    columns[column][4] = value
    table(empty_folder, "csv", **columns)
    for seed in range(20):
        with pytest.raises(DataError, match=f"column '{column}'"):
            load_prepared(build_spec(flags={**flags, "seed": seed}))


def test_headers_of_spreadsheets_are_understood(tmp_path: Path) -> None:
    """A byte order mark, Windows' line ends, quoted names with commas, letters of any script."""
    path = tmp_path / "made.csv"
    name = "fl\N{LATIN SMALL LETTER A WITH DIAERESIS}che, m2"
    path.write_bytes(f'\N{BYTE ORDER MARK}"{name}",t\r\n"1",2\r\n3,4\r\n'.encode())
    made = table_dataset(path, ["t"])
    assert made.features == (name,)
    assert made.x.tolist() == [[1], [3]]


# From a file to a model that is used.


@dataclass(frozen=True)
class Trained:
    """A trained model, its table, and how its run ended."""

    run: layerlab.RunReport
    model: Path
    rows: Path
    columns: dict[str, Any]


def houses() -> dict[str, Any]:
    """Forty houses, of which area and rooms make the price; areas and prices are far from standardised."""
    rng = np.random.default_rng(0)
    area, rooms = rng.uniform(40, 200, 40).round(1), rng.integers(1, 6, 40)
    price = 2000 * area + 15000 * rooms + 50000
    size = np.where(area > 110, "large", "small")
    return {"area": area, "rooms": rooms, "price": price, "size": size}


def trained(folder: Path, target: str) -> Trained:
    """Trains on the houses as the command line would, with one target and without the other."""
    other = "size" if target == "price" else "price"
    columns = {name: column for name, column in houses().items() if name != other}
    rows = table(folder, "csv", **columns).replace(folder / "houses.csv")
    flags = {"plugin": "optim", "epochs": 60, "hidden": 16, "lr": 0.01, "batch_size": 8}
    report = layerlab.run(data="houses.csv", target=[target], **flags)
    return Trained(report.runs[0], Path(report.runs[0].onnx["path"]).resolve(), rows, columns)


@pytest.fixture(scope="module")
def _houses_folder(tmp_path_factory: pytest.TempPathFactory, migrated_db: Path) -> Path:
    folder = tmp_path_factory.mktemp("houses")
    shutil.copy(migrated_db, folder / "mlflow.db")
    return folder


@pytest.fixture(scope="module")
def regression(_houses_folder: Path) -> Trained:
    """A model of prices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(_houses_folder)
        return trained(_houses_folder, "price")


@pytest.mark.parametrize(("apart", "shown"), [(";", "';'"), ("\t", "a tab"), ("|", "'|'")])
def test_columns_that_are_separated_otherwise(
    empty_folder: Path, layerlab_cli: Any, apart: str, shown: str
) -> None:
    """All of a row is one column then; what separates it is named."""
    Path("semi.csv").write_text(f"area{apart}price\n1{apart}2\n3{apart}4\n")
    result = layerlab_cli("run", "--data", "semi.csv", "--target", "price")
    assert (result.code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1] == (
        f"hint: its columns seem to be separated by {shown}: a comma is what is read"
    )


@pytest.fixture(scope="module")
def classification(_houses_folder: Path) -> Trained:
    """A model of two classes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(_houses_folder)
        return trained(_houses_folder, "size")


def raw(model: Trained) -> Any:
    return np.column_stack([model.columns["area"], model.columns["rooms"]])


def test_a_table_trains_from_the_command_line(folder: Path, layerlab_cli: Any) -> None:
    """``--data FILE --target COLUMN`` runs, validates and exports; the figures are in the report."""
    table(folder, "csv", **{k: v for k, v in houses().items() if k != "size"}).replace(folder / "houses.csv")
    flags = ("--plugin", "nn", "--epochs", 2, "--hidden", 4)
    result = layerlab_cli("run", "--data", "houses.csv", "--target", "price", *flags, "--json")
    (run,) = json.loads(result.stdout)["runs"]
    assert (result.code, run["status"]) == (0, "FINISHED")
    assert run["steps"] == 2, "32 rows to train on are one batch"
    assert set(run["val"]) == {"val_loss", "val_r2"}
    assert Path(run["onnx"]["path"]).is_file()


def test_a_model_of_a_table_answers_in_the_targets_own_units(regression: Trained) -> None:
    """Raw areas and rooms in, prices out: closer to the true ones than a tenth of their spread."""
    assert (regression.run.status, regression.run.error) == ("FINISHED", None)
    answers = layerlab.ModelFile(regression.model).run(raw(regression))[:, 0]
    price = regression.columns["price"]
    assert np.sqrt(np.mean((answers - price) ** 2)) < 0.1 * price.std()
    assert regression.run.val["val_r2"] > 0.9


def test_a_model_of_a_table_knows_its_columns(regression: Trained) -> None:
    """Names of inputs and outputs are in the metadata; the shapes are theirs."""
    model = layerlab.ModelFile(regression.model)
    assert model.metadata["features"] == ["area", "rooms"]
    assert model.metadata["outputs"] == ["price"]
    assert (model.metadata["task"], model.metadata["data"]) == ("regression", "houses")
    assert "classes" not in model.metadata
    assert model.n_in == 2


def test_a_model_of_a_text_target_knows_its_classes(classification: Trained) -> None:
    """One score a class; the class with the highest score is right for nearly every row."""
    model = layerlab.ModelFile(classification.model)
    assert model.metadata["classes"] == model.metadata["outputs"] == ["large", "small"]
    assert model.metadata["task"] == "classification"
    scores = model.run(raw(classification))
    answers = np.array(model.metadata["classes"])[scores.argmax(axis=1)]
    assert scores.shape == (40, 2)
    assert (answers == classification.columns["size"]).mean() >= 0.9
    assert set(classification.run.val) == {"val_loss", "val_accuracy"}


def test_several_targets_and_parquet_go_all_the_way(folder: Path, layerlab_cli: Any) -> None:
    """Two outputs, each under its name, for the rows of a Parquet file."""
    x = np.linspace(0, 1, 20)
    path = table(folder, "parquet", x=x, up=100 + x, down=-5 * x)
    targets = ("--target", "down", "--target", "up")
    flags = ("--plugin", "nn", "--epochs", 2, "--hidden", 4)
    result = layerlab_cli("run", "--data", path.name, *targets, *flags, "--json")
    (run,) = json.loads(result.stdout)["runs"]
    predicted = layerlab_cli("predict", run["onnx"]["path"], path.name)
    header, *rows = csv.reader(io.StringIO(predicted.stdout))
    assert (predicted.code, header, len(rows)) == (0, ["down", "up"], 20)
    values = np.array(rows, dtype=float)
    assert (np.abs(values[:, 1] - 100) < 10).all()
    assert (np.abs(values[:, 0]) < 30).all()


def test_a_constant_target_is_answered_by_itself(folder: Path) -> None:
    """Nothing divides by its spread of 0: the model says the constant."""
    path = table(folder, "csv", a=np.arange(20.0), t=np.full(20, 7.0))
    flags = {"plugin": "optim", "epochs": 200, "hidden": 8, "lr": 0.01}
    run = layerlab.run(data=path.name, target="t", **flags).runs[0]
    answers = layerlab.ModelFile(Path(run.onnx["path"])).run(np.arange(20.0)[:, None])
    assert run.status == "FINISHED"
    np.testing.assert_allclose(answers, 7, atol=0.5)


# layerlab predict


def test_predict_prints_a_regression_as_csv(regression: Trained, layerlab_cli: Any) -> None:
    """A header with the target's name and one line a row, the very numbers that the model gives."""
    result = layerlab_cli("predict", regression.model, regression.rows)
    header, *rows = csv.reader(io.StringIO(result.stdout))
    expected = layerlab.ModelFile(regression.model).run(raw(regression))
    assert (result.code, result.stderr, header) == (0, "", ["price"])
    assert np.array(rows, dtype=float).tolist() == expected.astype(float).tolist()


def test_predict_prints_a_classification_as_csv(classification: Trained, layerlab_cli: Any) -> None:
    """The class first, then its scores, one line a row."""
    result = layerlab_cli("predict", classification.model, classification.rows)
    header, *rows = csv.reader(io.StringIO(result.stdout))
    expected = layerlab.ModelFile(classification.model).run(raw(classification))
    assert (result.code, result.stderr, header) == (0, "", ["class", "large", "small"])
    assert [row[0] for row in rows] == [["large", "small"][i] for i in expected.argmax(axis=1)]
    assert np.array([row[1:] for row in rows], dtype=float).tolist() == expected.astype(float).tolist()


def test_predict_writes_a_file(regression: Trained, empty_folder: Path, layerlab_cli: Any) -> None:
    """``--output`` has what stdout would have had; stdout stays empty."""
    printed = layerlab_cli("predict", regression.model, regression.rows)
    result = layerlab_cli("predict", regression.model, regression.rows, "--output", "out.csv")
    assert (result.code, result.stdout, result.stderr) == (0, "", "")
    assert Path("out.csv").read_text() == printed.stdout


def test_predict_replaces_a_file_where_it_is(
    regression: Trained, empty_folder: Path, layerlab_cli: Any
) -> None:
    """Who may read it stays as it was, and a link leads to it as before."""
    printed = layerlab_cli("predict", regression.model, regression.rows)
    Path("there").mkdir()
    real = Path("there/real.csv")
    real.write_text("old")
    real.chmod(0o640)
    Path("out.csv").symlink_to(real)
    assert layerlab_cli("predict", regression.model, regression.rows, "-o", "out.csv").code == 0
    assert Path("out.csv").is_symlink()
    assert (real.read_text(), real.stat().st_mode & 0o777) == (printed.stdout, 0o640)
    assert list(Path("there").iterdir()) == [real]


def test_predict_writes_to_what_is_no_file(
    regression: Trained, empty_folder: Path, layerlab_cli: Any
) -> None:
    """A pipe, and stdout by its name, take the lines and stay what they are."""
    printed = layerlab_cli("predict", regression.model, regression.rows)
    assert layerlab_cli("predict", regression.model, regression.rows, "-o", "/dev/stdout") == printed
    os.mkfifo("pipe")
    end = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)  # a pipe holds more than these rows
    assert layerlab_cli("predict", regression.model, regression.rows, "-o", "pipe").code == 0
    assert os.read(end, 2**16).decode() == printed.stdout
    os.close(end)
    assert Path("pipe").is_fifo()


def test_where_stdout_leads_is_no_file_to_replace(regression: Trained, empty_folder: Path) -> None:
    """By its name the lines go where all else goes that is printed there."""
    command = [sys.executable, "-m", "layerlab", "predict", str(regression.model), str(regression.rows)]
    with Path("out").open("w") as out:
        subprocess.run([*command, "-o", "/dev/stdout"], stdout=out, check=True, timeout=60)
        assert os.fstat(out.fileno()).st_ino == Path("out").stat().st_ino
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert Path("out").read_text() == lines


@pytest.mark.skipif(os.name != "posix", reason="users are numbers")
def test_a_file_that_may_not_be_written_is_not_replaced() -> None:
    """Nor is one that may be, in a folder that may not, a reason to fail."""
    with tempfile.TemporaryDirectory() as where:  # where others may look, as pytest's own folders are not
        folder = Path(where)
        closed, read_only = folder / "open.csv", folder / "read-only.csv"
        for path, mode in ((closed, 0o666), (read_only, 0o444)):
            path.write_text("old")
            path.chmod(mode)
        folder.chmod(0o555)
        was = os.geteuid()
        os.seteuid(was or 65534)  # whoever may do anything is no test
        try:
            with pytest.raises(PermissionError), written_whole(read_only) as file:
                file.write("new")
            with written_whole(closed) as file:
                file.write("new")
        finally:
            os.seteuid(was)
            folder.chmod(0o755)
        assert [path.read_text() for path in (read_only, closed)] == ["old", "new"]


def test_what_is_not_written_whole_is_not_there(empty_folder: Path) -> None:
    """Whatever ends the writing, a signal too: the file is the one before, or there is none."""
    Path("old.csv").write_text("old")
    for name in ("old.csv", "new.csv"):
        with suppress(Interrupted), written_whole(Path(name)) as file:
            file.write("half")
            file.flush()
            raise Interrupted(signal.SIGINT)
    assert [path.name for path in empty_folder.iterdir()] == ["old.csv"]
    assert Path("old.csv").read_text() == "old"


def test_predict_finds_columns_by_name(regression: Trained, empty_folder: Path, layerlab_cli: Any) -> None:
    """Order does not matter, other columns are left alone, and one row is enough."""
    area, rooms = (regression.columns[name][0] for name in ("area", "rooms"))
    Path("rows.csv").write_text(f"note,rooms,area\nmine,{rooms},{area}\n")
    result = layerlab_cli("predict", regression.model, "rows.csv")
    whole = layerlab_cli("predict", regression.model, regression.rows)
    assert result.code == 0
    first = float(whole.stdout.splitlines()[1])
    assert float(result.stdout.splitlines()[1]) == pytest.approx(first, rel=1e-6)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("area,room\n1,2\n", "there is no column 'rooms', which the model takes", "did you mean 'room'?"),
        ("area,rooms\n1,2\n3,many\n", "column 'rooms' is not numeric: row 2 has 'many'", "encode it"),
        ("area,rooms\n1,\n", "column 'rooms' has no value", None),
        ("area,rooms\n1,2\ninf,2\n", "column 'area' is not finite in row 2", None),
        ("area,rooms\n1,2\n1e300,2\n", "column 'area'", None),
        ("area,rooms\n", "there are no rows below the header", None),
        ("area,rooms,area\n1,2,3\n", "two columns are called 'area'", None),
        ("", "the file is empty", None),
    ],
)
def test_predict_names_what_is_wrong_with_the_rows(
    regression: Trained, empty_folder: Path, layerlab_cli: Any, text: str, message: str, hint: str | None
) -> None:
    """One line with file and column, exit code 2, and no output file."""
    Path("rows.csv").write_text(text)
    result = layerlab_cli("predict", regression.model, "rows.csv", "--output", "out.csv")
    first, *rest = result.stderr.splitlines()
    assert (result.code, result.stdout) == (2, "")
    assert first.startswith(f"error: rows.csv: {message}")
    assert [line.partition(":")[0] for line in rest] in ([], ["hint"])
    assert hint is None or hint in rest[0]
    assert [path.name for path in empty_folder.iterdir()] == ["rows.csv"]


@pytest.mark.parametrize(
    ("model", "rows", "complaint"),
    [
        ("no.onnx", "{rows}", "no.onnx: no such file"),
        ("{model}", "no.csv", "no.csv: no such file"),
        (".", "{rows}", "."),
        ("{model}", "{model}", ".onnx"),
    ],
)
def test_predict_names_a_file_that_is_not_there(
    regression: Trained, empty_folder: Path, layerlab_cli: Any, model: str, rows: str, complaint: str
) -> None:
    """Model or rows, whichever it is: exit code 2."""
    places = {"model": regression.model, "rows": regression.rows}
    result = layerlab_cli("predict", model.format(**places), rows.format(**places))
    assert (result.code, result.stdout) == (2, "")
    assert complaint in result.stderr.splitlines()[0]


def test_predict_does_not_write_where_it_cannot(regression: Trained, empty_folder: Path, layerlab_cli: Any):
    """A folder that is not there is named; it is not made."""
    result = layerlab_cli("predict", regression.model, regression.rows, "-o", "no/out.csv")
    assert (result.code, result.stdout) == (2, "")
    assert result.stderr == "error: no/out.csv: cannot be written: No such file or directory\n"
    assert list(empty_folder.iterdir()) == []


def test_predict_refuses_weights_that_were_not_exported(
    regression: Trained, empty_folder: Path, layerlab_cli: Any
) -> None:
    """A file that was damaged, or that somebody changed, predicts nothing: as `verify` says of it."""
    Path("bad.onnx").write_bytes(flipped_weight(regression.model))
    result = layerlab_cli("predict", "bad.onnx", regression.rows, "-o", "out.csv")
    assert (result.code, result.stdout) == (1, "")
    assert result.stderr == "error: bad.onnx: the weights are not those that were exported\n"
    assert not Path("out.csv").exists()


@pytest.mark.parametrize("key", ["classes", "outputs", "features"])
@pytest.mark.parametrize(
    "value", ['["large"]', "[1, 2]", '{"large": 1, "small": 2}', "5", "null", "[not JSON"]
)
def test_predict_refuses_a_model_whose_names_do_not_fit(
    classification: Trained, empty_folder: Path, layerlab_cli: Any, key: str, value: str
) -> None:
    """The metadata of a file is what somebody wrote: what is no list of names is one line, not a crash."""
    proto = onnx.load(classification.model)
    for entry in proto.metadata_props:
        if entry.key == f"layerlab.{key}":
            entry.value = value
    onnx.save(proto, "odd.onnx")
    result = layerlab_cli("predict", "odd.onnx", classification.rows)
    first, *rest = result.stderr.splitlines()
    assert result.code in (1, 2)
    assert result.stdout == ""
    assert first.startswith("error: odd.onnx: ")
    assert [line.partition(":")[0] for line in rest] in ([], ["hint"])


# layerlab verify


def test_verify_prints_checks_and_metadata(classification: Trained, layerlab_cli: Any) -> None:
    """Every check with what it saw, then what the file says of itself; exit code 0."""
    result = layerlab_cli("verify", classification.model)
    lines = [line.split(maxsplit=2) for line in result.stdout.splitlines()]
    assert (result.code, result.stderr) == (0, "")
    assert [line[0] for line in lines[1:5]] == ["ok"] * 4
    assert ["classes", "large,", "small"] in lines
    assert ["features", "area,", "rooms"] in lines


def test_verify_prints_json(regression: Trained, layerlab_cli: Any) -> None:
    """``--json``: the same, and nothing else on stdout; `layerlab.verify` returns it."""
    result = layerlab_cli("verify", regression.model, "--json")
    report = json.loads(result.stdout)
    assert (result.code, result.stderr) == (0, "")
    assert set(report) == {"path", "ok", "checks", "metadata"}
    names = [check["name"] for check in report["checks"]]
    assert names == ["stands alone", "structure", "weights", "onnxruntime"]
    assert all(check["ok"] for check in report["checks"])
    assert report["metadata"]["run_id"] == regression.run.run_id
    assert report == layerlab.verify(regression.model).as_dict()


def flipped_weight(good: Path) -> bytes:
    data = bytearray(good.read_bytes())
    weights = onnx.load(good).graph.initializer[0].raw_data
    data[bytes(data).index(weights)] ^= 1
    return bytes(data)


def external_data(good: Path) -> bytes:
    proto = onnx.load(good)
    _move_out(proto.graph.initializer[0])
    return bytes(proto.SerializeToString())


def external_constant(good: Path) -> bytes:
    """The weights as a constant of the graph, kept in another file, and no digest to compare with."""
    proto = onnx.load(good)
    weights = proto.graph.initializer[0]
    node = proto.graph.node.add(op_type="Constant", output=[weights.name], name="constant")
    node.attribute.append(onnx.helper.make_attribute("value", weights))
    Path("weights.bin").write_bytes(weights.raw_data)
    _move_out(node.attribute[0].t)
    nodes = [node, *proto.graph.node[:-1]]
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del proto.graph.node[:], proto.graph.initializer[0]
    proto.graph.node.extend(copies)
    kept = [entry for entry in proto.metadata_props if not entry.key.endswith("sha256")]
    onnx.helper.set_model_props(proto, {entry.key: entry.value for entry in kept})
    return bytes(proto.SerializeToString())


def _move_out(tensor: onnx.TensorProto) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")


def wrong_operator(good: Path) -> bytes:
    proto = onnx.load(good)
    proto.graph.node[1].op_type = "Rleu"
    return bytes(proto.SerializeToString())


def nan_weight(good: Path) -> bytes:
    proto = onnx.load(good)
    weights = onnx.numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weights[0, :] = np.nan
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "w1"))
    onnx.helper.set_model_props(proto, {})
    return bytes(proto.SerializeToString())


def odd_metadata(good: Path) -> bytes:
    proto = onnx.load(good)
    onnx.helper.set_model_props(proto, {"layerlab.features": "[not JSON"})
    return bytes(proto.SerializeToString())


def truncated(good: Path) -> bytes:
    return good.read_bytes()[:200]


def table_of_text(good: Path) -> bytes:
    return b"area,rooms\n1,2\n"


def nothing(good: Path) -> bytes:
    return b""


@pytest.mark.parametrize(
    ("make", "check"),
    [
        (flipped_weight, "weights"),
        (external_data, "stands alone"),
        (external_constant, "stands alone"),
        (wrong_operator, "structure"),
        (nan_weight, "onnxruntime"),
        (odd_metadata, "metadata"),
        (truncated, "stands alone"),
        (table_of_text, "stands alone"),
        (nothing, "stands alone"),
    ],
)
def test_verify_fails_on_a_file_that_is_not_what_was_exported(
    regression: Trained, empty_folder: Path, layerlab_cli: Any, make: Any, check: str
) -> None:
    """The check that failed is named, as text and as JSON; exit code 1."""
    Path("bad.onnx").write_bytes(make(regression.model))
    result = layerlab_cli("verify", "bad.onnx", "--json")
    *passed, failed = json.loads(result.stdout)["checks"]
    assert (result.code, result.stderr) == (1, "")
    assert json.loads(result.stdout)["ok"] is False
    assert (failed["name"], failed["ok"]) == (check, False)
    assert all(one["ok"] for one in passed)
    text = layerlab_cli("verify", "bad.onnx")
    assert text.code == 1
    (line,) = [line for line in text.stdout.splitlines() if line.startswith("FAIL")]
    assert failed["detail"] in line


@pytest.mark.parametrize("make", [external_data, external_constant])
def test_predict_never_follows_a_model_out_of_its_file(
    regression: Trained, empty_folder: Path, layerlab_cli: Any, make: Any
) -> None:
    """A tensor in another file is refused, be it a weight or a constant, even where that file is there."""
    Path("bad.onnx").write_bytes(make(regression.model))
    result = layerlab_cli("predict", "bad.onnx", regression.rows)
    assert (result.code, result.stdout) == (1, "")
    assert "is kept in another file" in result.stderr


def test_verify_of_a_file_that_is_not_there_is_a_usage_error(empty_folder: Path, layerlab_cli: Any) -> None:
    """Exit code 2 and one line: nothing was checked."""
    result = layerlab_cli("verify", "no.onnx")
    assert (result.code, result.stdout, result.stderr) == (2, "", "error: no.onnx: no such file\n")
