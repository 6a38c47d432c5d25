"""Whatever comes in, it ends well or is refused: one line, the right exit code, and nothing left behind.

The inputs are drawn by hypothesis, the same ones every time; how many there were is printed at the end.
"""

from __future__ import annotations

import csv
import datetime
import io
import unicodedata
from collections.abc import Callable
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layerlab.errors import InputError, LayerlabError
from layerlab.export import build_model
from layerlab.modelfile import verify
from layerlab.planning import resolve
from layerlab.prediction import predict_table
from layerlab.spec import FLAGS, ExperimentSpec, build_spec
from layerlab.strictyaml import parse_yaml
from layerlab.tier import Params


def drawn(count: int) -> Any:
    """So many inputs, the same ones in every run, however long one takes."""
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@pytest.fixture
def tried(record_property: Callable[[str, object], None]) -> Any:
    """A list to append each input's ending to; their number is printed at the end of the tests."""
    endings: list[str] = []
    yield endings
    record_property("inputs tried", len(endings))


def check_refusal(error: LayerlabError) -> None:
    """One printable line and perhaps a hint, and the exit code of bad input."""
    assert isinstance(error, InputError)
    assert error.exit_code == 2
    for text in (str(error), error.hint or "-"):
        assert text
        assert text.isprintable()


@contextmanager
def ending(endings: list[str]) -> Any:
    """Notes how it ended; any other exception than a refusal is the test's failure."""
    try:
        yield
    except LayerlabError as error:
        check_refusal(error)
        endings.append("refused")
    else:
        endings.append("done")


def is_both(endings: list[str]) -> bool:
    """Inputs that are all refused, or none, would try one half of the code."""
    return set(endings) == {"done", "refused"}


# Text of every kind: what is no character by itself, what draws, what is very long.
TEXT = st.one_of(
    st.text(max_size=12),
    st.text(
        st.sampled_from("\x00\x1b\x7f\n\r\t\u202e\u200b\ud800\U0010ffff/\\.:;=,'\"{}[]&*!#%-?a1"), max_size=12
    ),
    st.sampled_from(
        ["", " ", "nn", "all", "numpy", "random", "iris", "no.csv", "../x.csv", "x" * 300, "Default"]
    ),
)
NUMBERS = st.one_of(
    st.integers(-3, 6),
    st.integers(),
    st.floats(),
    st.sampled_from([2**63, 2**63 - 1, 10**30, 10**400, -1, 0, 1, 1e300, 1e-300, True, False]),
    st.just(5000).map(lambda digits: 10**digits),  # Python itself does not write it out
)
SCALARS = st.one_of(st.none(), NUMBERS, TEXT, st.binary(max_size=4))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
)
# What each flag takes, so that some inputs get through.
FITTING: dict[str, st.SearchStrategy[Any]] = {
    "plugin": st.sampled_from(["nn", "numpy", "all", ["nn", "optim"], "custom-module", "layerlab:nn"]),
    "steps": st.integers(1, 5),
    "epochs": st.integers(1, 5),
    "lr": st.floats(1e-9, 1.0) | st.sampled_from(["1e-3", 1]),
    "batch_size": st.integers(1, 8),
    "seed": st.integers(0, 2**63 - 1),
    "accelerator": st.sampled_from(["auto", "cpu"]),
    "precision": st.sampled_from(["32-true", "64-true", "bf16-mixed"]),
    "hidden": st.integers(1, 9),
    "init": st.sampled_from(["normal", "linear"]),
    "bias": st.booleans(),
    "data": st.sampled_from(["random", "iris", "wine"]),
    "n": st.integers(1, 9),
    "d_in": st.integers(1, 9),
    "d_out": st.integers(1, 9),
    "val_fraction": st.sampled_from([0, 0.2, 0.5]),
    "experiment": st.sampled_from(["layerlab", "x/y", "\u00e4"]),
    "name": st.sampled_from(["a", "../a", "\u00e4"]),
    "export": st.booleans(),
}
ODD_FLAGS = st.dictionaries(
    st.sampled_from(sorted(FLAGS)) | TEXT.filter(lambda t: t not in RESERVED), VALUES, max_size=3
)
RESERVED = {"config", "settings", "flags"}


@st.composite
def flags(draw: st.DrawFn) -> dict[str, Any]:
    """Keywords that fit, and in half of the cases some that do not."""
    names = draw(st.lists(st.sampled_from(sorted(FITTING)), unique=True, max_size=5))
    fitting = {name: draw(FITTING[name]) for name in names}
    return fitting | (draw(ODD_FLAGS) if draw(st.booleans()) else {})


# Specs.


def test_keywords_become_a_spec_or_are_refused(empty_folder: Path, tried: list[str]) -> None:
    """A spec that is accepted is itself a file that gives the same spec."""

    @drawn(400)
    @given(keywords=flags())
    def check(keywords: dict[str, Any]) -> None:
        with ending(tried):
            spec = build_spec(flags=keywords)
            assert isinstance(spec, ExperimentSpec)
            assert ExperimentSpec.model_validate(parse_yaml(spec.as_yaml(), "spec")) == spec

    check()
    assert is_both(tried)
    assert not list(empty_folder.iterdir())


def test_keywords_resolve_or_are_refused(empty_folder: Path, tried: list[str]) -> None:
    """Down to tiers and data: every run has its spec, which can be written and read again."""

    @drawn(100)
    @given(keywords=flags())
    def check(keywords: dict[str, Any]) -> None:
        with ending(tried):
            for spec in resolve(**keywords):
                assert ExperimentSpec.model_validate(parse_yaml(spec.as_yaml(), "spec")) == spec

    check()
    assert is_both(tried)
    assert not list(empty_folder.iterdir())


def test_settings_become_a_spec_or_are_refused(empty_folder: Path, tried: list[str]) -> None:
    """``--set`` with any key and any value."""
    keys = (
        st.sampled_from(["name", "train.lr", "train.steps", "net", "data.target", "plugins", "train.x.y"])
        | TEXT
    )
    values = TEXT | st.sampled_from(
        ["1", "0.1", "nn", "[nn, optim]", "{lr: 1}", "2020-01-01", "~", "!!int x"]
    )

    @drawn(300)
    @given(pairs=st.lists(st.tuples(keys, values), max_size=3), equals=st.sampled_from(["=", "=", "", "=="]))
    def check(pairs: list[tuple[str, str]], equals: str) -> None:
        with ending(tried):
            build_spec(settings=[f"{key}{equals}{value}" for key, value in pairs])

    check()
    assert is_both(tried)


# YAML.

PIECES = st.sampled_from(
    [
        *(
            "train: ",
            "net: ",
            "data: ",
            "steps: 5",
            "lr: 1e-3",
            "plugins: [nn]",
            "name: x",
            "hidden: 3",
            "\n",
            "\n  ",
        ),
        *(
            "{",
            "}",
            "[",
            "]",
            ", ",
            ": ",
            "- ",
            "? ",
            "&a ",
            "*a",
            "<<: ",
            "!!int ",
            "!!timestamp ",
            "!x ",
            "| ",
            "> ",
        ),
        *(
            "2020-01-01",
            "2020-99-99",
            "0x",
            "0b1",
            "1:2:3",
            "~",
            ".inf",
            ".nan",
            "9" * 5000,
            "'",
            '"',
            "\\UFFFFFFFF",
        ),
        *(
            "%YAML 1.1\n",
            "---\n",
            "...\n",
            "\t",
            "#",
            "\ufeff",
            "\x00",
            "\x1b",
            "=",
            "[" * 2000,
            "{a: " * 500,
        ),
    ]
)


def test_any_text_as_yaml_is_a_spec_or_is_refused(empty_folder: Path, tried: list[str]) -> None:
    """Bytes, text, and YAML that was put together of pieces that make sense to YAML."""
    path = empty_folder / "spec.yaml"
    pieces = st.lists(PIECES, max_size=12).map("".join)
    whole = st.lists(
        st.sampled_from(["train:\n  steps: 5", "name: x", "plugins: nn", "net: {hidden: 3}"]), unique=True
    )
    contents = st.one_of(
        st.binary(max_size=60), TEXT.map(_encoded), pieces.map(_encoded), whole.map("\n".join).map(_encoded)
    )

    @drawn(500)
    @given(content=contents)
    def check(content: bytes) -> None:
        path.write_bytes(content)
        with ending(tried):
            build_spec(config=path)

    check()
    assert is_both(tried)
    assert [p.name for p in empty_folder.iterdir()] == ["spec.yaml"]


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def test_any_tree_as_yaml_is_a_spec_or_is_refused(empty_folder: Path, tried: list[str]) -> None:
    """Mappings whose keys are those of a spec and whose values are anything, and any others."""
    parts = ("net", "data", "train", "plugins", "experiment", "name", "export")
    leaves = [key.rpartition(".")[2] for key in FLAGS.values()]
    plain = st.one_of(
        st.none(), st.integers(-2, 9), st.floats(), TEXT, st.just(10**400), st.dates(), st.booleans()
    )
    trees = st.dictionaries(
        st.sampled_from(parts) | TEXT,
        plain
        | st.lists(plain, max_size=2)
        | st.dictionaries(st.sampled_from(leaves) | TEXT, plain, max_size=3),
        max_size=3,
    )
    good = st.fixed_dictionaries({}, optional={"name": st.just("x"), "train": st.just({"steps": 3})})
    path = empty_folder / "spec.yaml"

    @drawn(300)
    @given(tree=trees | good)
    def check(tree: dict[str, Any]) -> None:
        import yaml

        path.write_bytes(_encoded(yaml.safe_dump(tree, allow_unicode=False)))
        with ending(tried):
            build_spec(config=path)

    check()
    assert is_both(tried)


@pytest.mark.parametrize("depth", [3, 12, 40])
def test_aliases_of_aliases_do_not_grow(empty_folder: Path, depth: int) -> None:
    """A few lines that stand for ten to the fortieth values are refused at the first of them."""
    for inside in ("[{}]", "{{<<: [{}]}}"):
        lines = ["a0: &a0 {x: y}" if "<<" in inside else "a0: &a0 [x]"]
        ten = [inside.format(", ".join([f"*a{i}"] * 10)) for i in range(depth)]
        lines += [f"a{i}: &a{i} {values}" for i, values in enumerate(ten, 1)]
        (empty_folder / "bomb.yaml").write_text("\n".join(lines))
        with pytest.raises(InputError, match=r"bomb.yaml: alias '\*a0' \(line 2\)"):
            build_spec(config=empty_folder / "bomb.yaml")


# Tables.


def learn(path: Path, targets: list[str], val_fraction: float | None) -> None:
    """All that happens to a table before something is recorded; what comes of it is finite."""
    from layerlab.data import load_prepared

    spec = build_spec(flags={"data": str(path), "target": targets, "val_fraction": val_fraction})
    prepared = load_prepared(spec)
    for rows in (prepared.train, prepared.val):
        x, y = prepared.arrays(rows)
        assert x.shape == (len(rows), len(prepared.dataset.features))
        assert y.shape == (len(rows), len(prepared.dataset.outputs))
        assert np.isfinite(x).all()
        assert np.isfinite(y).all()


CELLS = st.one_of(
    st.integers(-9, 9).map(str),
    st.integers(-9, 9).map(str),
    st.floats().map(repr),
    st.sampled_from(
        ["", "NA", "nan", "inf", "-Infinity", "null", "1e400", "1e39", "9" * 400, "0x1", "true", "a", "b"]
    ),
    st.sampled_from(
        ["2020-01-01", "12:00", "1,5", '"', '""', "\n", "\r", "\x00", "\x1b[31m", "\ud800", "=1+1"]
    ),
    st.text(max_size=5),
)
COLUMNS = st.one_of(
    st.sampled_from(["a", "b", "y"]), st.text(max_size=4), st.sampled_from(["\x1b", "\ud800", " "])
)
TARGETS = st.just(["y"]) | st.just(["y"]) | st.lists(st.sampled_from(["y", "a"]) | COLUMNS, max_size=2)
FRACTIONS = st.sampled_from([None, 0, 0.5])


@st.composite
def csv_tables(draw: st.DrawFn) -> bytes:
    """Some numbers, some anything; rows of one length, or ragged; from a writer, or joined by commas."""
    header = draw(st.just(["a", "y"]) | st.lists(COLUMNS, min_size=1, max_size=4))
    cells = draw(st.sampled_from([st.integers(-9, 9).map(str), CELLS]))
    ragged = draw(st.integers(0, 3)) == 0
    width = st.integers(0, 5) if ragged else st.just(len(header))
    rows = [[draw(cells) for _ in range(draw(width))] for _ in range(draw(st.integers(0, 6)))]
    if draw(st.booleans()):
        return _encoded("\n".join(",".join(row) for row in [header, *rows]))
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator=draw(st.sampled_from(["\n", "\r\n"]))).writerows([header, *rows])
    return _encoded(out.getvalue())


def test_any_csv_file_is_learned_from_or_refused(empty_folder: Path, tried: list[str]) -> None:
    """Bytes, and tables with missing, mixed, huge and odd cells, names twice or none, ragged rows."""
    path = empty_folder / "table.csv"

    @drawn(500)
    @given(content=st.binary(max_size=80) | csv_tables() | csv_tables(), targets=TARGETS, fraction=FRACTIONS)
    def check(content: bytes, targets: list[str], fraction: float | None) -> None:
        path.write_bytes(content)
        with ending(tried):
            learn(path, targets, fraction)

    check()
    assert is_both(tried)
    assert [p.name for p in empty_folder.iterdir()] == ["table.csv"]


KINDS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.float64(), st.floats()),
    (pa.float64(), st.integers(-9, 9).map(float)),
    (pa.float64(), st.integers(-9, 9).map(float)),
    (pa.float32(), st.floats(width=32)),
    (pa.float16(), st.integers(-9, 9).map(float)),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.int8(), st.integers(-9, 9)),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.bool_(), st.booleans()),
    (pa.string(), st.sampled_from(["a", "b", "1", "", "\x1b"])),
    (pa.large_string(), st.sampled_from(["a", "b"])),
    (pa.binary(), st.binary(max_size=3)),
    (pa.date32(), st.dates()),
    (pa.timestamp("us"), st.datetimes(datetime.datetime(1700, 1, 1), datetime.datetime(2200, 1, 1))),
    (pa.duration("us"), st.timedeltas(datetime.timedelta(-9), datetime.timedelta(9))),
    (pa.time64("us"), st.times()),
    (pa.decimal128(38, 3), st.decimals(-(10**20), 10**20, places=3)),
    (pa.decimal256(76, 0), st.integers(-(10**60), 10**60).map(Decimal)),
    (pa.list_(pa.int64()), st.lists(st.integers(-9, 9), max_size=2)),
    (pa.struct([("p", pa.int64())]), st.fixed_dictionaries({"p": st.integers(-9, 9)})),
    (pa.map_(pa.string(), pa.int64()), st.just([("k", 1)])),
    (pa.dictionary(pa.int32(), pa.string()), st.sampled_from(["a", "b"])),
    (pa.dictionary(pa.int32(), pa.int64()), st.integers(-9, 9)),
    (pa.null(), st.none()),
]
NUMERIC = [
    (kind, values) for kind, values in KINDS if kind in {pa.float16(), pa.int8(), pa.bool_(), pa.string()}
]
# What Python has no value for: dates of no calendar, durations of no clock, text that is none.
RAW = [
    pa.array([2**30, 1, -(2**31)], pa.date32()),
    pa.array([2**62, 1, 2], pa.duration("s")),
    pa.array([2**62, 1, 2], pa.timestamp("ms")),
    pa.array([b"\xff", b"a", b"b"]).view(pa.string()),
    pa.array([b"\xff", b"a", b"b"]).view(pa.string()).dictionary_encode(),
]


@st.composite
def parquet_tables(draw: st.DrawFn) -> pa.Table:
    """Columns of any kind that a Parquet file has, with nulls, of names that may be there twice."""
    names = draw(st.just(["a", "y"]) | st.lists(COLUMNS.filter(_is_unicode), max_size=4))
    if draw(st.integers(0, 9)) == 0:
        return pa.table([draw(st.sampled_from(RAW)) for _ in names], names=names)
    count = draw(st.integers(0, 6))
    nulls, kinds = draw(st.sampled_from([(False, NUMERIC), (False, KINDS), (True, KINDS)]))
    arrays = []
    for _ in names:
        kind, values = draw(st.sampled_from(kinds))
        column = st.none() | values if nulls else values
        arrays.append(pa.array([draw(column) for _ in range(count)], kind))
    return pa.table(arrays, names=names)


def _is_unicode(name: str) -> bool:
    return "\ud800" not in name


def test_any_parquet_file_is_learned_from_or_refused(empty_folder: Path, tried: list[str]) -> None:
    """Tables of every kind of column, and files of which some bytes were changed."""
    path = empty_folder / "table.parquet"
    changes = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4)

    @drawn(500)
    @given(
        table=parquet_tables(),
        changed=st.just([]) | st.just([]) | changes,
        targets=TARGETS,
        fraction=FRACTIONS,
    )
    def check(
        table: pa.Table, changed: list[tuple[float, int]], targets: list[str], fraction: float | None
    ) -> None:
        out = io.BytesIO()
        pyarrow.parquet.write_table(table, out)
        content = bytearray(out.getvalue())
        for place, value in changed:
            content[int(place * len(content))] = value
        path.write_bytes(content)
        with ending(tried):
            learn(path, targets, fraction)

    check()
    assert is_both(tried)
    assert [p.name for p in empty_folder.iterdir()] == ["table.parquet"]


# Model files.


def test_any_change_of_a_model_file_is_found_or_harmless(empty_folder: Path, tried: list[str]) -> None:
    """Some bytes changed, taken out or put in: `verify` and `predict` answer, or say why not."""
    rng = np.random.default_rng(0)
    weights = Params(*(rng.standard_normal(shape) for shape in ((2, 3), (3, 2), 3, 2)))
    names = {"features": ["a", "b"], "outputs": ["u", "v"], "classes": ["u", "v"], "tier": "nn"}
    good = build_model(weights, np.float32, names).SerializeToString()
    path, rows = empty_folder / "model.onnx", empty_folder / "rows.csv"
    rows.write_text("a,b\n1,2\n3,4\n")
    places = st.integers(0, len(good) - 1)
    changes = st.lists(st.tuples(places, st.integers(0, 3), st.binary(max_size=4)), max_size=4)

    @drawn(500)
    @given(changed=changes)
    def check(changed: list[tuple[int, int, bytes]]) -> None:
        content = bytearray(good)
        for place, out, into in changed:
            content[place : place + out] = into
        path.write_bytes(content)
        report = verify(path)
        assert all(one.detail.isprintable() for one in report.checks)
        tried.append("done" if report.ok else "refused")
        said = "-"
        try:
            assert predict_table(path, rows).values.shape == (2, 2)
        except LayerlabError as error:
            said = str(error)
        assert said.isprintable()

    check()
    assert is_both(tried)
    assert {p.name for p in empty_folder.iterdir()} == {"model.onnx", "rows.csv"}


# The command line.

RUN = (
    "--steps --epochs --lr --batch-size --hidden --init --seed --n --d-in --d-out --plugin --data --target "
    "--val-fraction --precision --experiment --name --config --set --bias --no-export --accelerator --json"
)
COMMANDS = {
    "run": RUN.split(),
    "plugins": ["--timeout", "--json"],
    "plugins show": ["--json"],
    "verify": ["--json"],
    "predict": ["--output"],
    "check": ["--only", "--seed", "--accelerator", "--junit"],
    "bench": ["--rounds", "--seconds", "--mode", "--batch-size"],
    "compare": ["--runs", "--plugin", "--steps", "--data"],
}
WORDS = st.one_of(
    TEXT.filter(lambda text: "\x00" not in text and "\ud800" not in text),
    st.sampled_from(
        ["nn", "1", "0", "-1", "1e-3", "nan", "random", "rows.csv", "bad.onnx", "y", "train.lr=1", ".", "--"]
    ),
)


def _controls(character: str) -> bool:
    """What moves the cursor. The parser of the command line repeats the rest of what was typed as it is."""
    return unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command and options that it has, with values that may fit or not; nothing that would train."""
    command = draw(st.sampled_from(["run", "run", *COMMANDS]))
    words = command.split()
    for option in draw(st.lists(st.sampled_from(COMMANDS[command]), max_size=4)):
        words += [option] if draw(st.integers(0, 9)) == 0 else [option, draw(WORDS)]
    words += (
        draw(st.lists(WORDS, max_size=2)) if command not in {"run", "compare"} or draw(st.booleans()) else []
    )
    # a run that may begin prints its spec; the others end before they do anything that takes long
    ends = {"run": ["--print-config"], "check": ["--only", "no-such-check"], "bench": ["--mode", "none"]}
    return [*words, *ends.get(command, ["--plugin", "none"] if command == "compare" else [])]


def test_any_command_line_ends_with_an_exit_code(
    empty_folder: Path, layerlab_cli: Any, tried: list[str]
) -> None:
    """0, or 1 or 2 with what is wrong in printable lines; no traceback, and no file that was not there."""
    (empty_folder / "rows.csv").write_text("x,y\n1,2\n3,4\n5,6\n")
    (empty_folder / "bad.onnx").write_bytes(b"\x08\x08bad")
    before = {path.name for path in empty_folder.iterdir()}

    @drawn(160)
    @given(words=command_lines())
    def check(words: list[str]) -> None:
        result = layerlab_cli(*words)
        assert result.code in {0, 1, 2}, words
        assert "Traceback" not in result.stderr
        assert {c for c in result.stdout + result.stderr if _controls(c)} <= {"\n"}, words
        if result.code == 2:
            assert result.stdout == ""
            assert result.stderr != ""
        left = {path.name for path in empty_folder.iterdir()} - before
        assert left == set(), words
        tried.append("done" if result.code == 0 else "refused")

    check()
    assert is_both(tried)


# Runs.


def test_what_is_accepted_trains_and_what_is_refused_leaves_no_record(
    folder: Path, client: Any, tried: list[str]
) -> None:
    """A few go all the way: as many FINISHED runs and models as were accepted, and none besides."""
    import layerlab

    @drawn(12)
    @given(
        keywords=st.fixed_dictionaries(
            {"plugin": st.sampled_from(["nn", "numpy", "custom-module"]), "steps": st.just(1)},
            optional={
                "hidden": st.integers(0, 4),
                "lr": st.sampled_from([1e-6, 1e-4, 0, "x"]),
                "n": st.integers(0, 9),
                "d_in": st.integers(1, 4),
                "batch_size": st.integers(1, 12),
                "val_fraction": st.sampled_from([0, 0.5, 1]),
                "name": st.sampled_from(["a", "../../a", "\u202e", "x" * 200, "x" * 201]),
                "init": st.sampled_from(["normal", "linear", "odd"]),
            },
        )
    )
    def check(keywords: dict[str, Any]) -> None:
        with ending(tried):
            assert [run.status for run in layerlab.run(**keywords).runs] == ["FINISHED"]

    check()
    assert is_both(tried)
    experiments = [e.experiment_id for e in client.search_experiments()]
    statuses = [run.info.status for run in client.search_runs(experiments)]
    assert statuses == ["FINISHED"] * tried.count("done")
    assert len(list((folder / "models").iterdir())) == tried.count("done")
