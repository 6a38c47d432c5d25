"""Bad input: exit code 2, one line that names the culprit, perhaps a hint, and nothing written."""

from __future__ import annotations

import io
import os
import shlex
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet
import pytest

import layerlab
from layerlab import checkpoint
from layerlab.errors import CheckpointError, DataError
from layerlab.folder import refuse_unwritable
from layerlab.tracking import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helpers import Result
    from layerlab.errors import LayerlabError

GOOD = "area,rooms,price\n10,1,100\n20,2,200\n30,3,300\n40,4,400\n"


def parquet(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


# What the command lines below refer to; a test writes those files that its command line names.
FILES: dict[str, str | bytes] = {
    "good.csv": GOOD,
    "empty.csv": "",
    "blank.csv": "\n\n\n",
    "header.csv": "area,rooms,price\n",
    "text.csv": GOOD + "big,5,500\n",
    "date.csv": "day,price\n2020-01-01,1\n2020-01-02,2\n",
    "nan.csv": GOOD + "NaN,5,500\n",
    "gap.csv": GOOD + ",5,500\n",
    "nan-target.csv": GOOD + "50,5,nan\n",
    "gap-label.csv": "area,kind\n1,a\n2,\n3,b\n",
    "hollow.csv": "area,rooms,price\n1,,1\n2,,2\n",
    "inf.csv": GOOD + "50,inf,500\n",
    "minus-inf.csv": GOOD + "50,5,-Infinity\n",
    "huge.csv": GOOD + "1e200,5,500\n",
    "large.csv": GOOD + "1e39,5,500\n",
    "huge-target.csv": GOOD + "50,5,1e300\n",
    "one-row.csv": "area,rooms,price\n1,2,3\n",
    "one-class.csv": "area,kind\n1,house\n2,house\n3,house\n",
    "twice.csv": "area,area,price\n1,2,3\n4,5,6\n",
    "nameless.csv": "area,,price\n1,2,3\n4,5,6\n",
    "short-row.csv": GOOD + "50,5\n",
    "long-row.csv": GOOD + "50,5,500,5000\n",
    "two-labels.csv": "area,kind,size\n1,a,b\n2,b,a\n3,a,a\n",
    "only-target.csv": "price\n1\n2\n3\n",
    "latin-name.csv": "fl\N{LATIN SMALL LETTER A WITH DIAERESIS}che,price\n1,2\n3,4\n".encode("latin-1"),
    "latin-value.csv": "kind,price\n\N{LATIN SMALL LETTER A WITH DIAERESIS},2\nb,4\nb,4\n".encode("latin-1"),
    "binary.csv": b"\x00\xff\xfe\x01" * 10,
    "not.parquet": "this is no Parquet file",
    "short.parquet": parquet(area=[1.0, 2.0], price=[1.0, 2.0])[:-10],
    "null.parquet": parquet(area=[1.0, None, 3.0], price=[1.0, 2.0, 3.0]),
    "no-date.parquet": parquet(area=pa.array([2**30, 1], pa.date32()), price=[1.0, 2.0]),
    "no-text.parquet": parquet(area=pa.array([b"\xff", b"a"]).view(pa.string()), price=[1.0, 2.0]),
    "no-rows.parquet": parquet(area=pa.array([], pa.float64()), price=pa.array([], pa.float64())),
    "houses.xlsx": "something",
    "houses": "something",
    "empty.yaml": "",
    "comment.yaml": "# train:\n#   steps: 5\n",
    "list.yaml": "- plugins\n- train\n",
    "unknown.yaml": "train:\n  stesp: 5\n",
    "text.yaml": "train:\n  lr: fast\n",
    "both.yaml": "train:\n  steps: 5\n  epochs: 5\n",
    "twice.yaml": "train:\n  steps: 5\ntrain:\n  lr: 1\n",
    "odd-key.yaml": "{a: b}: c\n",
    "tag.yaml": "name: !!python/name:os.getcwd\n",
    "broken.yaml": "train: {steps: 5\n",
    "unknown-tier.yaml": "plugins: [nn, optmi]\n",
    "alias.yaml": "name: &a x\nexperiment: *a\n",
    "merge.yaml": "train:\n  <<: {steps: 5}\n",
    "typed.yaml": "name: !!timestamp x\n",
    "no-character.yaml": 'name: "\\UFFFFFFFF"\n',
    "deep.yaml": "name: " + "[" * 5000,
    "long.yaml": "# " + "x" * 70_000,
    "site/broken-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: broken-dist\nVersion: 1.0\n",
    "site/broken-1.0.dist-info/entry_points.txt": "[layerlab.tiers]\nbroken = tier_that_raises:Tier\n",
    "site/tier_that_raises.py": "raise RuntimeError('it never worked')\n",
}

HOUSES = "run --target price --data"
# Name of the case, the command line, and what must be in its one line.
CASES: list[tuple[str, str, list[str]]] = [
    # tiers
    ("unknown tier", "run --plugin custom-modul", ["'custom-modul'"]),
    ("one unknown tier of two", "run --plugin nn --plugin nnn", ["'nnn'"]),
    ("unknown distribution", "run --plugin nobody:nn", ["'nobody:nn'"]),
    ("no name", "run --plugin ''", ["plugin"]),
    ("unknown tier in a file", "run --config unknown-tier.yaml", ["'optmi'"]),
    ("broken plugin", "run --plugin broken", ["'broken'", "broken-dist 1.0", "it never worked"]),
    ("broken plugin behind a good one", "run --plugin nn --plugin broken", ["'broken'", "broken-dist 1.0"]),
    ("show of an unknown tier", "plugins show nnn", ["'nnn'"]),
    ("show of a broken plugin", "plugins show broken", ["'broken'", "broken-dist 1.0"]),
    # files of experiments
    ("missing config", "run --config no.yaml", ["no.yaml", "no such file"]),
    ("config is a folder", "run --config .", ["Is a directory"]),
    ("empty config", "run --config empty.yaml", ["empty.yaml", "empty"]),
    ("config of comments", "run --config comment.yaml", ["comment.yaml", "empty"]),
    ("config is a list", "run --config list.yaml", ["list.yaml", "not a mapping"]),
    ("config is no YAML", "run --config broken.yaml", ["broken.yaml", "line"]),
    ("config with a tag", "run --config tag.yaml", ["tag.yaml", "python/name"]),
    ("config with an alias", "run --config alias.yaml", ["alias.yaml", "'*a'", "line 2"]),
    ("config with a merged key", "run --config merge.yaml", ["merge.yaml", "key is not text", "line 2"]),
    ("config with a standard tag", "run --config typed.yaml", ["typed.yaml", "timestamp", "line 1"]),
    ("config with no character", "run --config no-character.yaml", ["no-character.yaml"]),
    ("config nested deeply", "run --config deep.yaml", ["deep.yaml", "deep"]),
    ("config too long", "run --config long.yaml", ["long.yaml", "65536"]),
    ("config without an end", "run --config /dev/zero", ["/dev/zero", "65536"]),
    ("config with an odd key", "run --config odd-key.yaml", ["odd-key.yaml"]),
    ("unknown key", "run --config unknown.yaml", ["unknown.yaml", "'train.stesp'"]),
    ("wrong type", "run --config text.yaml", ["text.yaml", "train.lr", "'fast'"]),
    ("key twice", "run --config twice.yaml", ["twice.yaml", "'train'", "line 3"]),
    ("steps and epochs in a file", "run --config both.yaml", ["both.yaml", "steps and epochs"]),
    # settings and flags
    ("steps and epochs", "run --steps 3 --epochs 3 --n 4 --d-in 2", ["steps", "epochs"]),
    ("setting of an unknown key", "run --set train.stesp=5", ["'train.stesp'"]),
    ("setting without a value", "run --set train.steps", ["train.steps"]),
    ("setting of the wrong type", "run --set train.steps=many", ["train.steps", "'many'"]),
    ("setting of a fraction", "run --set train.steps=1.5", ["train.steps", "1.5"]),
    ("no steps", "run --steps 0", ["train.steps", "0"]),
    ("steps below 0", "run --steps=-1", ["train.steps", "-1"]),
    ("no epochs", "run --epochs 0 --data iris", ["train.epochs", "0"]),
    ("lr NaN", "run --lr nan", ["train.lr", "nan"]),
    ("lr infinite", "run --lr inf", ["train.lr", "inf"]),
    ("lr 0", "run --lr 0", ["train.lr", "0"]),
    ("lr below 0", "run --lr=-0.1", ["train.lr", "-0.1"]),
    ("lr too large for a float", "run --lr 1e999", ["train.lr", "inf"]),
    ("lr NaN in a setting", "run --set train.lr=.nan", ["train.lr", "nan"]),
    ("no hidden units", "run --hidden 0", ["net.hidden", "0"]),
    ("more hidden units than memory", "run --hidden 1000000000000", ["net.hidden", "memory"]),
    ("more hidden units than a number", "run --hidden 9223372036854775808", ["net.hidden"]),
    ("more rows than memory", "run --n 100000000000", ["data.n", "memory"]),
    ("unknown init", "run --init zeros", ["net.init", "'zeros'"]),
    ("seed below 0", "run --seed=-1", ["train.seed", "-1"]),
    ("unknown precision", "run --precision 16", ["train.precision", "'16'"]),
    ("unknown accelerator", "run --accelerator tpu", ["train.accelerator", "'tpu'"]),
    ("no rows", "run --n 0", ["data.n", "0"]),
    ("more rows than can be", "run --n 1000000000000000000000000000000", ["data.n"]),
    ("val_fraction 1", "run --data iris --val-fraction 1", ["data.val_fraction", "1"]),
    ("val_fraction below 0", "run --data iris --val-fraction=-0.2", ["data.val_fraction", "-0.2"]),
    ("val_fraction NaN", "run --data iris --val-fraction nan", ["data.val_fraction", "nan"]),
    ("val_fraction leaves nothing", "run --data iris --val-fraction 0.999", ["iris", "150 rows", "0.999"]),
    ("one row to split", "run --n 1 --val-fraction 0.5", ["random", "0.5"]),
    ("experiment Default", "run --experiment Default", ["'Default'"]),
    ("empty experiment", "run --experiment ''", ["experiment"]),
    ("control character", "run --name 'a\x1b[31mb'", ["name", "control character"]),
    # batches
    ("batch larger than random data", "run --batch-size 65", ["train.batch_size", "65", "64 rows"]),
    (
        "batch larger than small random data",
        "run --n 9 --batch-size 10",
        ["train.batch_size", "10", "9 rows"],
    ),
    (
        "batch larger than the training rows",
        "run --batch-size 64 --val-fraction 0.5",
        ["train.batch_size", "64", "32 rows"],
    ),
    ("batch larger than iris", "run --data iris --batch-size 121", ["train.batch_size", "121", "120 rows"]),
    ("batch larger than a file", f"{HOUSES} good.csv --batch-size 4", ["train.batch_size", "4", "3 rows"]),
    # which data
    ("unknown data", "run --data digts", ["'digts'"]),
    ("unknown suffix", "run --data houses.xlsx --target price", ["'houses.xlsx'"]),
    ("no suffix", "run --data houses --target price", ["'houses'"]),
    ("missing file", f"{HOUSES} no.csv", ["no.csv", "no such file"]),
    ("missing Parquet file", f"{HOUSES} no.parquet", ["no.parquet", "no such file"]),
    ("folder with a suffix", f"{HOUSES} folder.csv", ["folder.csv", "not a file"]),
    ("name too long", f"{HOUSES} {'x' * 300}.csv", ["xxx", "too long"]),
    ("target on digits", "run --data digits --target price", ["target", "'digits'"]),
    ("target on random data", "run --target price", ["target", "'random'"]),
    ("size of digits", "run --data digits --n 5", ["n", "'digits'"]),
    ("size of a file", f"{HOUSES} good.csv --d-in 5", ["d_in", "'good.csv'"]),
    # which columns
    ("no target", "run --data good.csv", ["good.csv", "which column"]),
    ("unknown target", "run --data good.csv --target prise", ["good.csv", "'prise'"]),
    ("empty target", "run --data good.csv --target ''", ["target"]),
    ("target twice", f"{HOUSES} good.csv --target price", ["good.csv", "twice"]),
    ("all columns are targets", f"{HOUSES} good.csv --target area --target rooms", ["good.csv", "inputs"]),
    ("target is the only column", f"{HOUSES} only-target.csv", ["only-target.csv", "inputs"]),
    (
        "two targets of text",
        "run --data two-labels.csv --target kind --target size",
        ["two-labels.csv", "'kind'"],
    ),
    ("columns of one name", f"{HOUSES} twice.csv", ["twice.csv", "'area'"]),
    ("column without a name", f"{HOUSES} nameless.csv", ["nameless.csv", "column 2"]),
    # which rows
    ("empty file", f"{HOUSES} empty.csv", ["empty.csv", "empty"]),
    ("empty lines", f"{HOUSES} blank.csv", ["blank.csv"]),
    ("header only", f"{HOUSES} header.csv", ["header.csv", "no rows"]),
    ("Parquet without rows", f"{HOUSES} no-rows.parquet", ["no-rows.parquet", "no rows"]),
    ("one row", f"{HOUSES} one-row.csv", ["one-row.csv", "one row"]),
    ("one class", "run --data one-class.csv --target kind", ["one-class.csv", "'kind'", "'house'"]),
    ("short row", f"{HOUSES} short-row.csv", ["short-row.csv", "Expected 3 columns, got 2", "50,5"]),
    ("long row", f"{HOUSES} long-row.csv", ["long-row.csv", "Expected 3 columns, got 4", "50,5,500,5000"]),
    ("no text at all", f"{HOUSES} binary.csv", ["binary.csv"]),
    ("no Parquet at all", f"{HOUSES} not.parquet", ["not.parquet", "cannot be read"]),
    ("Parquet cut off", f"{HOUSES} short.parquet", ["short.parquet", "cannot be read"]),
    ("header not in UTF-8", f"{HOUSES} latin-name.csv", ["latin-name.csv", "UTF-8"]),
    (
        "label not in UTF-8",
        "run --data latin-value.csv --target kind",
        ["latin-value.csv", "'kind'", "UTF-8"],
    ),
    # which cells
    ("text in a column", f"{HOUSES} text.csv", ["text.csv", "'area'", "row 5", "'big'"]),
    ("dates", f"{HOUSES} date.csv", ["date.csv", "'day'", "row 1", "'2020-01-01'"]),
    ("NaN in a column", f"{HOUSES} nan.csv", ["nan.csv", "'area'", "row 5"]),
    ("empty cell", f"{HOUSES} gap.csv", ["gap.csv", "'area'", "row 5"]),
    ("date of no calendar", f"{HOUSES} no-date.parquet", ["no-date.parquet", "'area'", "date32"]),
    ("text that is none", f"{HOUSES} no-text.parquet", ["no-text.parquet", "'area'", "UTF-8"]),
    ("missing in Parquet", f"{HOUSES} null.parquet", ["null.parquet", "'area'", "row 2"]),
    ("NaN in the target", f"{HOUSES} nan-target.csv", ["nan-target.csv", "'price'", "row 5"]),
    ("empty label", "run --data gap-label.csv --target kind", ["gap-label.csv", "'kind'", "row 2"]),
    ("column without values", f"{HOUSES} hollow.csv", ["hollow.csv", "'rooms'", "no values"]),
    ("infinite", f"{HOUSES} inf.csv", ["inf.csv", "'rooms'", "row 5"]),
    ("minus infinite", f"{HOUSES} minus-inf.csv", ["minus-inf.csv", "'price'", "row 5"]),
    ("too large to standardise", f"{HOUSES} huge.csv", ["huge", "'area'"]),
    ("too large for 32 bits", f"{HOUSES} large.csv", ["large", "'area'"]),
    ("target too large to standardise", f"{HOUSES} huge-target.csv", ["huge-target", "'price'"]),
    # what a tier cannot do
    ("numpy on a GPU", "run --plugin numpy --accelerator gpu", ["'numpy'", "'gpu'"]),
    (
        "numpy among others on a GPU",
        "run --plugin nn --plugin numpy --accelerator cuda",
        ["'numpy'", "'cuda'"],
    ),
    ("numpy in bf16", "run --plugin numpy --precision bf16-mixed", ["'numpy'", "bf16-mixed"]),
    # other commands
    ("verify of a missing file", "verify no.onnx", ["no.onnx", "no such file"]),
    ("runs of no store", "compare --runs 1 2", ["there is no tracking store sqlite:///mlflow.db"]),
    ("predict with a missing model", "predict no.onnx good.csv", ["no.onnx", "no such file"]),
    ("predict of missing rows", "predict no.onnx no.csv", ["no.csv", "no such file"]),
    # names that no file can have, and that Arrow takes for none
    ("data not called in UTF-8", f"{HOUSES} caf\udce9.csv", ["csv", "unicode"]),
    ("rows not called in UTF-8", "predict no.onnx caf\udce9.csv", ["csv: its name is not UTF-8 text"]),
    ("verify of a name too long", f"verify {'x' * 300}.onnx", ["xxx", "too long"]),
    ("predict with a name too long", f"predict {'x' * 300}.onnx good.csv", ["xxx", "too long"]),
    ("JUnit file with a name too long", f"check nn --junit {'x' * 300}.xml", ["--junit xxx", "too long"]),
    (
        "store with a name too long",
        f"compare --runs 1 2 --tracking-uri sqlite:///{'x' * 300}.db",
        ["sqlite:///xxx", "too long"],
    ),
]


def listing(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if "__pycache__" not in path.parts
    }


def prepare(folder: Path, words: list[str], patch: pytest.MonkeyPatch) -> None:
    """Writes the files that a command line names."""
    named = {name: content for name, content in FILES.items() if name in words}
    if "broken" in words:
        named |= {name: content for name, content in FILES.items() if name.startswith("site/")}
        patch.setenv("LAYERLAB_PLUGINS", "broken-dist")
    if "folder.csv" in words:
        (folder / "folder.csv").mkdir()
    for name, content in named.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    if "broken" in words:
        patch.syspath_prepend(folder / "site")


def refused(result: Result) -> str:
    """The one line of a command that was refused."""
    first, *rest = result.stderr.splitlines()
    assert result.code == 2
    assert result.stdout == ""
    assert first.startswith("error: ")
    assert [line.partition(" ")[0] for line in rest] in ([], ["hint:"])
    assert all(line.isprintable() for line in (first, *rest))
    return first


@pytest.mark.parametrize(
    ("command", "culprits"), [pytest.param(line, found, id=name) for name, line, found in CASES]
)
def test_bad_input_is_one_line_and_writes_nothing(
    empty_folder: Path,
    layerlab_cli: Any,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    culprits: list[str],
) -> None:
    """Exit code 2, the culprit named, at most a hint beside it, and the folder as it was."""
    words = shlex.split(command)
    prepare(empty_folder, words, monkeypatch)
    before = listing(empty_folder)
    line = refused(layerlab_cli(*words))
    assert [culprit for culprit in culprits if culprit not in line] == [], line
    assert listing(empty_folder) == before


@pytest.mark.parametrize("name", ["--print-config", "--quiet", "--json"])
@pytest.mark.parametrize("command", ["run --plugin nope", f"{HOUSES} text.csv"])
def test_bad_input_is_told_in_every_mode(
    empty_folder: Path, layerlab_cli: Any, monkeypatch: pytest.MonkeyPatch, command: str, name: str
) -> None:
    """Neither ``--quiet`` nor ``--json`` swallows it, and ``--print-config`` sees it too."""
    words = shlex.split(command)
    prepare(empty_folder, words, monkeypatch)
    assert layerlab_cli(*words, name) == layerlab_cli(*words)
    refused(layerlab_cli(*words, name))


@pytest.mark.parametrize(
    ("accelerator", "what"), [("gpu", "GPU"), ("cuda", "CUDA GPU"), ("mps", "MPS device")]
)
def test_a_gpu_that_is_not_there_is_refused(
    empty_folder: Path, layerlab_cli: Any, accelerator: str, what: str
) -> None:
    """Before anything is written, with the tier and what would work."""
    import torch

    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("there is a GPU on this machine")
    result = layerlab_cli("run", "--plugin", "nn", "--accelerator", accelerator)
    assert f"tier 'nn': there is no {what} on this machine" in refused(result)
    assert result.stderr.splitlines()[1] == "hint: --accelerator cpu or auto"
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("run --stesp 5", "No such option: --stesp"),
        ("run --steps abc", "Invalid value for '--steps'"),
        ("run --lr fast", "Invalid value for '--lr'"),
        ("run --steps", "requires an argument"),
        ("run something", "unexpected extra argument"),
        ("train", "No such command 'train'"),
        ("plugins list", "No such command 'list'"),
        ("plugins show", "Missing argument"),
        ("verify", "Missing argument"),
        ("predict model.onnx", "Missing argument"),
    ],
)
def test_a_command_line_that_is_none_writes_nothing(
    empty_folder: Path, layerlab_cli: Any, command: str, complaint: str
) -> None:
    """What the parser refuses ends with exit code 2 and its own words on stderr."""
    result = layerlab_cli(*shlex.split(command))
    assert (result.code, result.stdout) == (2, "")
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr
    assert list(empty_folder.iterdir()) == []


def test_bad_input_raises_from_python(empty_folder: Path) -> None:
    """`layerlab.run` raises what the command line prints, and writes nothing either."""
    import layerlab

    with pytest.raises(layerlab.PluginError) as raised:
        layerlab.run(plugin="custom-modul")
    assert isinstance(raised.value, layerlab.InputError)
    assert (str(raised.value), raised.value.hint) == (
        "no tier is called 'custom-modul'",
        "did you mean 'custom-module'?",
    )
    assert list(empty_folder.iterdir()) == []


@contextmanager
def as_nobody() -> Iterator[None]:
    """As somebody whom permissions stop: root passes them all."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize(
    ("name", "kind", "looks"),
    [
        (".layerlab", DataError, [refuse_unwritable]),
        ("checkpoints", CheckpointError, [checkpoint.runs, lambda: checkpoint.of_run("0" * 32)]),
    ],
)
def test_a_folder_that_may_not_be_entered_is_named(
    empty_folder: Path, name: str, kind: type[LayerlabError], looks: list[Callable[[], object]]
) -> None:
    """What the system refuses is one line, and no traceback."""
    Path(name).mkdir(mode=0)
    for look in looks:
        with as_nobody(), pytest.raises(kind, match=f"^{name}.*: cannot be read: Permission denied$"):
            look()


@pytest.mark.parametrize(
    "command",
    [
        "run",
        "run --offline",
        "resume --last",
        "compare --plugin nn --plugin optim",
        "check nn",
        "bench nn",
    ],
)
def test_a_folder_that_is_gone_is_one_line(
    folder: Path, layerlab_cli: Any, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Whoever removed it under the shell: nothing is run, and no path of it is asked for."""
    Path("gone").mkdir()
    monkeypatch.chdir("gone")
    (folder / "gone").rmdir()
    assert refused(layerlab_cli(*shlex.split(command))).startswith(
        "error: the working folder: cannot be read"
    )


def test_what_is_kept_is_not_made_where_it_cannot_be(folder: Path) -> None:
    """Before the tiers of a comparison train, and before those of a bench are proven."""
    Path(".layerlab").write_text("not a folder")
    doings: list[Callable[[], object]] = [
        lambda: layerlab.compare(plugin=["numpy", "tensors"]),
        lambda: layerlab.bench(["nn"]),
    ]
    for doing in doings:
        with pytest.raises(DataError, match=r"\.layerlab: cannot be written$"):
            doing()


def test_a_recorder_opens_nothing_in_a_folder_that_is_gone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the commands that train nothing find out."""
    Path("gone").mkdir()
    monkeypatch.chdir("gone")
    (folder / "gone").rmdir()
    with Recorder() as recorder, pytest.raises(DataError, match="the working folder: cannot be read"):
        recorder.open(f"sqlite:///{folder}/mlflow.db")


def test_a_constant_column_is_allowed(folder: Path, layerlab_cli: Any) -> None:
    """A deviation of 0 does not divide: the run is FINISHED and its model passes the gate."""
    rows = "".join(f"{i},7,{3 * i}\n" for i in range(20))
    Path("constant.csv").write_text(f"area,floors,price\n{rows}")
    flags = ("--plugin", "nn", "--epochs", 2, "--hidden", 4)
    result = layerlab_cli("run", "--data", "constant.csv", "--target", "price", *flags)
    assert (result.code, result.stderr) == (0, "nn: 2 steps\n")
    assert result.stdout.splitlines()[1].split()[:2] == ["nn", "FINISHED"]
    assert len(list((folder / "models").iterdir())) == 1
