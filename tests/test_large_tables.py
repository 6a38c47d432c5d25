"""Tables that are mapped from a file: the same results, the same complaints, and nothing left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

import layerlab
from helpers import recorders_waited_for, run_python
from layerlab.data import large, load_dataset, mapped, table
from layerlab.data.dataset import Dataset
from layerlab.errors import DataError
from layerlab.spec import build_spec

ROWS = 3000


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every table is a large one, and is read and laid out in many parts."""
    monkeypatch.setattr(large, "LARGE", 1)
    monkeypatch.setattr(large, "BLOCK", 4096)


def columns(rows: int = ROWS) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(rows) * 10 + 3 for _ in range(3))
    label = np.where(a > 3, "yes", np.where(b > 3, "no", "perhaps"))
    return {"a": a, "b": b, "whole": np.arange(rows) % 7, "c": c, "label": label}


def write(folder: Path, kind: str, **given: Any) -> str:
    """A table as a file; its name."""
    rows = pa.table(given)
    path = folder / f"rows.{kind}"
    if kind == "csv":
        pyarrow.csv.write_csv(rows, path)
    else:
        pyarrow.parquet.write_table(rows, path, row_group_size=700)
    return path.name


def flags(path: str, target: str) -> dict[str, Any]:
    return {"data": path, "target": [target]}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("target", ["c", "label"])
def test_a_mapped_table_is_the_table(
    folder: Path, kind: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers, classes, digest: as read at once; and a run on it ends with the same losses and figures."""
    chosen = columns()
    if target == "c":
        del chosen["label"]
    path = write(folder, kind, **chosen)
    run = {**flags(path, target), "plugin": "custom-module", "epochs": 2, "batch_size": 64, "hidden": 8}
    whole = load_dataset(build_spec(flags=flags(path, target)))
    expected = layerlab.run(**run).runs[0]
    monkeypatch.setattr(large, "LARGE", 1)
    monkeypatch.setattr(large, "BLOCK", 4096)
    parts = load_dataset(build_spec(flags=flags(path, target)))
    assert (parts.is_mapped, whole.is_mapped) == (True, False)
    assert isinstance(parts.y, np.memmap)
    assert (parts.x == whole.x).all()
    assert (parts.y == whole.y).all()
    assert parts.digest == whole.digest
    assert (parts.features, parts.outputs, parts.classes) == (whole.features, whole.outputs, whole.classes)
    found = layerlab.run(**run).runs[0]
    assert found.status == "FINISHED"
    assert (found.first_loss, found.final_loss, found.val) == (
        expected.first_loss,
        expected.final_loss,
        expected.val,
    )
    left = {".layerlab", "mlflow.db", "mlflow.db.lock", "mlruns", "models", path}
    assert {entry.name for entry in folder.iterdir()} == left


@pytest.mark.parametrize(
    ("rows", "width", "count"), [(1, 3, 1), (50, 3, 50), (4096, 3, 4096), (9000, 3, 4096), (40, 2**18, 32)]
)
def test_a_sample_is_no_more_than_there_is_nor_than_memory_should_hold(
    empty_folder: Path, rows: int, width: int, count: int
) -> None:
    """No row twice, from the first to the last one; of wide ones so many as 64 MiB hold."""
    with mapped.ArrayWriter("wide", width, np.float64, least_rows=rows) as out:
        for row in range(rows):
            out.append(np.full((1, width), row))
        x = out.mapped()
    sample = Dataset("wide", "wide.csv", x, x, (), (), None, standardise=True).sample()
    assert sample.shape == (count, width)
    assert (sample == sample[:, :1]).all()
    chosen = sample[:, 0].astype(int).tolist()
    assert chosen == sorted(set(chosen))
    assert (chosen[0], chosen[-1]) == (0, rows - 1)
    assert not isinstance(sample, np.memmap)


def test_statistics_by_parts_are_those_of_the_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means and deviations put together from parts, far from 0, where a careless sum of squares fails."""
    from layerlab.data.dataset import Scaler

    rng = np.random.default_rng(0)
    x = rng.standard_normal((5000, 3)) * [1e-3, 1.0, 0.0] + [1e6, -5.0, 7.0]
    rows = rng.permutation(5000)[:4321]
    monkeypatch.setattr(mapped, "CHUNK_BYTES", 8 * 3 * 100)
    scaler = Scaler.fit(x, x, rows, scale_targets=True)
    exact = x[rows].astype(np.longdouble)
    np.testing.assert_allclose(scaler.x_mean, exact.mean(axis=0).astype(float), rtol=1e-14)
    # The mean of a part is off by a rounding of 1e6, 1e-10, beside deviations of 1e-3.
    np.testing.assert_allclose(scaler.x_std[:2], exact.std(axis=0).astype(float)[:2], rtol=1e-7)
    assert (scaler.x_std[2], scaler.x_mean[2]) == (1.0, 7.0)


BAD = [
    ("csv", "a", "x", "column 'a' is not numeric: row 2501 has 'x'"),
    ("csv", "a", "", "column 'a' has no value in row 2501"),
    ("csv", "a", "inf", "column 'a' is not finite in row 2501"),
    ("csv", "whole", "1.5x", "column 'whole' is not numeric: row 2501 has '1.5x'"),
    ("csv", "c", "1e300", "column 'c' is too large for 32 bits in row 2501: 1e+300"),
    ("csv", "label", "", "column 'label' has no value in row 2501"),
    ("parquet", "a", None, "column 'a' has no value in row 2501"),
    ("parquet", "b", float("inf"), "column 'b' is not finite in row 2501"),
    ("parquet", "label", None, "column 'label' has no value in row 2501"),
]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(("kind", "column", "value", "said"), BAD)
def test_a_bad_value_far_down_is_named_with_its_row(
    empty_folder: Path, kind: str, column: str, value: Any, said: str, layerlab_cli: Any
) -> None:
    """Before anything is trained or recorded: one line with file, column and row, exit code 2."""
    values = {name: list(map(str, v)) if kind == "csv" else list(v) for name, v in columns().items()}
    values[column][2500] = value
    if kind == "csv":
        text = [",".join(values), *(",".join(row) for row in zip(*values.values(), strict=True))]
        (empty_folder / "rows.csv").write_text("\n".join(text))
    else:
        write(empty_folder, kind, **values)
    result = layerlab_cli("run", "-p", "nn", "--data", f"rows.{kind}", "--target", "label", "--quiet")
    assert (result.code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[0] == f"error: rows.{kind}: {said}"
    assert [entry.name for entry in empty_folder.iterdir()] == [f"rows.{kind}"]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n" + "1,2\n" * 2000 + "1,2,3\n", "cannot be read: CSV parse error: row 2001: "),
        ("a,b\n1,2\n", "there are too few rows"),
        ("a,b\n", "there are too few rows"),
        ("a,a\n1,2\n3,4\n", "two columns are called 'a'"),
        ("a,b\n1,x\n" + "2,x\n" * 900, "target 'b' has one class only: 'x'"),
        (
            "a,b\n1,x\n" + "".join(f"2,{i}x\n" for i in range(900)),
            "'b' has too many classes: 901 in 901 rows",
        ),
        ("a,b\n" + "true,2\n" * 2000 + "no!,2\n", "'a' begins with true and false: row 2001 has 'no!'"),
        ("b,a\n" + "x,2\n" * 2000 + "\xff,2\n", "column 'b' is not UTF-8 text in row 2001$"),
    ],
    ids=[
        "ragged",
        "one row",
        "no rows",
        "two of a name",
        "one class",
        "names of rows",
        "truth and others",
        "latin-1",
    ],
)
def test_a_large_table_that_cannot_be_learned_from_is_refused(
    empty_folder: Path, text: str, said: str
) -> None:
    """The faults of small tables, found in large ones."""
    Path("rows.csv").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=f"rows.csv: .*{said}"):
        load_dataset(build_spec(flags=flags("rows.csv", "b")))


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("target", ["a", "b"])
@pytest.mark.parametrize("part", [2, 40, 97])
def test_a_value_of_another_kind_is_named_in_whichever_part_it_is(
    empty_folder: Path, target: str, part: int
) -> None:
    """Rows are counted on from part to part, past lines that are empty; nothing is returned to train on."""
    row = part * 1000
    lines = ["12,34"] * 100_000
    lines[row - 1] = "x,34"
    Path("rows.csv").write_text("\n".join(["a,b", "", *lines]))
    read: list[str] = []
    with pytest.raises(DataError, match=f"column 'a' is not numeric: row {row} has 'x'$"):
        load_dataset(build_spec(flags=flags("rows.csv", target)), read.append)
    assert len(read) >= part, "the file is read in several parts"


@pytest.mark.usefixtures("small_parts")
def test_whole_numbers_may_be_followed_by_others(empty_folder: Path) -> None:
    """The kinds of a column are those of its first part: whole or not makes no difference."""
    Path("rows.csv").write_text("a,b\n" + "1,2\n" * 2000 + "1.5,2e-3\n")
    data = load_dataset(build_spec(flags=flags("rows.csv", "b")))
    assert (data.x[-1, 0], data.y[-1, 0], len(data.x)) == (1.5, 2e-3, 2001)


def test_a_killed_process_leaves_nothing_behind(folder: Path) -> None:
    """The laid-out table has no name: SIGKILL in the middle of the training, and the folder is as it was."""
    write(folder, "parquet", **{name: values for name, values in columns().items() if name != "label"})
    code = (
        "import layerlab.data.large as large, layerlab, sys\n"
        "large.LARGE = 1\n"
        "class Told(layerlab.Observer):\n"
        "    def advanced(self, step, loss): print('trains', flush=True)\n"
        "layerlab.run(plugin='nn', data='rows.parquet', target=['c'], epochs=10**6, observer=Told())\n"
    )
    before = {entry.name for entry in folder.iterdir()} | {".layerlab", "mlflow.db.lock", "mlruns"}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "trains\n"
    with recorders_waited_for(process.pid):
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    assert {entry.name for entry in folder.iterdir()} <= before


@pytest.fixture
def full_disk(tmp_path: Path) -> Any:
    """A real file system of 1 MB."""
    path = tmp_path / "small"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "layerlab", str(path)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("mounting a small file system needs rights that this process has not")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.usefixtures("small_parts")
def test_labels_that_name_rows_are_refused_before_all_are_held(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names of all rows of a large table may not fit in memory: reading ends where they are too many."""
    Path("rows.csv").write_text("a,b\n" + "".join(f"{i},n{i}\n" for i in range(3000)))
    monkeypatch.setattr(large, "MOST_CLASSES", 1000)
    monkeypatch.setattr(table, "MOST_CLASSES", 1000)
    with pytest.raises(DataError, match=r"too many classes: 1[0-9]{3} in 1[0-9]{3} rows"):
        load_dataset(build_spec(flags=flags("rows.csv", "b")))


@pytest.mark.parametrize(("value", "is_large"), [("0", True), ("0.12345678901234567", False)])
def test_a_csv_file_is_large_by_its_numbers(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, value: str, is_large: bool
) -> None:
    """Two bytes of text become eight, twenty become eight as well."""
    Path("rows.csv").write_text("a,b\n" + f"{value},{value}\n" * (40_000 // len(f"{value},{value}\n")))
    monkeypatch.setattr(large, "LARGE", 2**16)
    monkeypatch.setattr(large, "BLOCK", 4096)
    assert load_dataset(build_spec(flags=flags("rows.csv", "b"))).is_mapped == is_large


@pytest.mark.usefixtures("small_parts")
def test_a_disk_with_just_enough_room_is_enough(
    empty_folder: Path, full_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a CSV file the rows are only known once they are read: what is asked for is less than they take."""
    value = "0.12345678901234567"
    Path("rows.csv").write_text("a,b,c\n" + f"{value},{value},{value}\n" * 40_000)
    monkeypatch.setenv("TMPDIR", str(full_disk))
    assert load_dataset(build_spec(flags=flags("rows.csv", "c"))).x.shape == (40_000, 2)
    assert list(full_disk.iterdir()) == []


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(("rows", "said"), [(60_000, "No space left on device"), (300_000, "are needed and")])
def test_a_csv_file_without_room_is_one_line(
    empty_folder: Path, full_disk: Path, monkeypatch: pytest.MonkeyPatch, rows: int, said: str
) -> None:
    """Either it is sure beforehand, or the write says so; nothing is left."""
    Path("rows.csv").write_text("a,b,c\n" + "1,2,3\n" * rows)
    monkeypatch.setenv("TMPDIR", str(full_disk))
    with pytest.raises(DataError, match=rf"rows.csv: cannot be laid out in [^\n]*{said}[^\n]*$") as raised:
        load_dataset(build_spec(flags=flags("rows.csv", "c")))
    assert "TMPDIR" in str(raised.value.hint)
    assert list(full_disk.iterdir()) == []


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0.0 kB"), (2048, "2.0 kB"), (3_100_000, "3.1 MB"), (12_800_000_000, "12.8 GB")]
)
def test_sizes_are_in_a_unit_that_shows_them(count: int, shown: str) -> None:
    """Never "0.0 GB"."""
    assert mapped.size(count) == shown


@pytest.mark.usefixtures("small_parts")
def test_a_disk_without_room_is_one_line(
    empty_folder: Path, full_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before the table is laid out, with what to do, and nothing is left."""
    path = write(empty_folder, "parquet", **{k: v for k, v in columns(60_000).items() if k != "label"})
    monkeypatch.setenv("TMPDIR", str(full_disk))
    with pytest.raises(DataError, match=r"at least 1\.. MB are needed and 1\.0 MB are free") as raised:
        load_dataset(build_spec(flags=flags(path, "c")))
    assert "TMPDIR" in str(raised.value.hint)
    assert list(full_disk.iterdir()) == []


def test_a_disk_that_fills_up_meanwhile_is_one_line(full_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There was room, and somebody else took it: the write that fails says so."""
    monkeypatch.setenv("TMPDIR", str(full_disk))
    said = r"rows.csv: cannot be laid out in .*: No space left on device"
    with (
        mapped.ArrayWriter("rows.csv", 100, "f8", least_rows=1) as out,
        pytest.raises(DataError, match=said),
    ):
        out.append(np.ones((20_000, 100)))
    assert list(full_disk.iterdir()) == []


@pytest.mark.slow
def test_memory_does_not_grow_with_the_table(tmp_path: Path) -> None:
    """Ten times the rows, past what memory would be given: the process holds no more of its own.

    What is mapped from the file can be dropped at any time and is not counted.
    """
    peaks = []
    for rows in (200_000, 2_000_000):
        folder = tmp_path / str(rows)
        folder.mkdir()
        path = folder / "rows.parquet"
        rng = np.random.default_rng(0)
        names = [f"c{i}" for i in range(40)]
        schema = pa.schema([(name, pa.float64()) for name in names])
        with pyarrow.parquet.ParquetWriter(path, schema) as out:
            for _ in range(rows // 100_000):
                part = rng.standard_normal((100_000, 40))
                out.write_table(pa.table(dict(zip(names, part.T, strict=True))))
        code = (
            "import layerlab, layerlab.data.large as large, json\n"
            "large.LARGE = 1\n"
            "def own():\n"
            "    lines = open('/proc/self/status').read().splitlines()\n"
            "    return next(int(l.split()[1]) / 1e3 for l in lines if l.startswith('RssAnon'))\n"
            "peak = 0\n"
            "class Watch(layerlab.Observer):\n"
            "    def look(self, *_):\n"
            "        global peak\n"
            "        peak = max(peak, own())\n"
            "    stage = advanced = look\n"
            "run = layerlab.run(plugin='nn', data='rows.parquet', target=['c0'], steps=2000,\n"
            "                   batch_size=256, observer=Watch()).runs[0]\n"
            "print(json.dumps([run.status, peak]))\n"
        )
        result = run_python(code, cwd=folder)
        status, peak = json.loads(result.stdout.splitlines()[-1])
        assert status == "FINISHED", result.stderr
        peaks.append(peak)
        path.unlink()
    # The order of the rows, and who of them is kept for validation, take some 8-byte numbers a row.
    assert peaks[1] - peaks[0] < 8 * 8 * 1.8
