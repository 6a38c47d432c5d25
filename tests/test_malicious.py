"""What somebody else made may be made to do harm: files and names run nothing, and write nowhere else."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import os
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from helpers import TIERS, TINY, Site
from layerlab.errors import TrackingError
from layerlab.prediction import harmless
from layerlab.provenance import source_tags
from layerlab.tracking.store import Store

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def whole(result: Any) -> str:
    """All that a command printed; printable, and without a traceback."""
    text = str(result.stdout + result.stderr)
    assert {c for c in text if not c.isprintable()} <= {"\n"}, repr(text)
    assert "Traceback" not in text
    return text


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts}


# YAML.


@pytest.mark.parametrize(
    "text",
    [
        "name: !!python/object/apply:os.system ['touch ran']",
        "name: !!python/object/new:os.system ['touch ran']",
        "!!python/object/apply:subprocess.check_call [['touch', 'ran']]",
        '!!python/object/apply:builtins.exec [\'open("ran", "w")\']',
        "name: !!python/module:this",
        "? !!python/object/apply:os.system ['touch ran']\n: x",
        "plugins: [nn, !!python/object/apply:os.system ['touch ran']]",
        "%TAG ! tag:yaml.org,2002:python/object/apply:\n---\nname: !os.system ['touch ran']",
    ],
)
def test_yaml_names_no_code(empty_folder: Path, layerlab_cli: Any, text: str) -> None:
    """Neither a file nor a setting makes an object: exit code 2, and no command ran."""
    Path("evil.yaml").write_text(text)
    for arguments in (("--config", "evil.yaml"), ("--set", f"name={text.rpartition('name: ')[2]}")):
        result = layerlab_cli("run", *arguments)
        assert (result.code, result.stdout) == (2, "")
        assert len(whole(result).splitlines()) <= 2
    assert listing(empty_folder) == {"evil.yaml"}


# Model files.


def model(nodes: list[Any], tensors: tuple[Any, ...] = (), n_in: int = 2, **metadata: str) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, ["N", n_in])],
        [helper.make_tensor_value_info("y", FLOAT, ["N", 1])],
        list(tensors),
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    found = {"features": '["a", "b"]', "outputs": '["y"]', **metadata}
    helper.set_model_props(proto, {f"layerlab.{key}": value for key, value in found.items()})
    return proto


def tensor(name: str, values: Any, kind: Any = np.float32) -> Any:
    return numpy_helper.from_array(np.asarray(values, kind), name)


LAYER = helper.make_node("Gemm", ["x", "w"], ["y"])
HIDDEN = helper.make_node("Gemm", ["x", "w"], ["h"])
WEIGHTS = tensor("w", [[1], [2]])


def external(location: str) -> Any:
    proto = TensorProto(name="w", data_type=FLOAT, dims=[2, 1], data_location=TensorProto.EXTERNAL)
    proto.external_data.add(key="location", value=location)
    return proto


def shaped(*dims: int, data: bytes = b"\0" * 8) -> Any:
    return TensorProto(name="w", data_type=FLOAT, dims=dims, raw_data=data)


def filled(*shape: int) -> onnx.ModelProto:
    """An operator that makes so many numbers of one."""
    make = helper.make_node("ConstantOfShape", ["s"], ["big"])
    total = helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0)
    add = helper.make_node("Add", ["h", "sum"], ["y"])
    return model([make, total, HIDDEN, add], (WEIGHTS, tensor("s", shape, np.int64)))


def doubled() -> onnx.ModelProto:
    twice = [helper.make_node("Concat", [f"v{i}", f"v{i}"], [f"v{i + 1}"], axis=1) for i in range(60)]
    total = helper.make_node("ReduceSum", ["v60"], ["y"], keepdims=1)
    return model([helper.make_node("Identity", ["x"], ["v0"]), *twice, total])


def endless() -> onnx.ModelProto:
    def info(name: str, kind: int, shape: list[Any]) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["goes"]), helper.make_node("Add", ["v", "v"], ["vv"])],
        "body",
        [info("i", INT64, []), info("go", BOOL, []), info("v", FLOAT, ["N", 1])],
        [info("goes", BOOL, []), info("vv", FLOAT, ["N", 1])],
    )
    loop = helper.make_node("Loop", ["most", "true", "h"], ["y"], body=body)
    return model([HIDDEN, loop], (WEIGHTS, tensor("true", True, bool), tensor("most", 2**62, np.int64)))


def functions(depth: int) -> onnx.ModelProto:
    """A function that calls another twice, which calls another twice."""
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
    made = [helper.make_function("d", "f0", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], sets)]
    for i in range(1, depth):
        calls = [helper.make_node(f"f{i - 1}", [given], [out], domain="d") for given, out in ("am", "mb")]
        made.append(helper.make_function("d", f"f{i}", ["a"], ["b"], calls, sets))
    proto = model(
        [
            helper.make_node(f"f{depth - 1}", ["x"], ["q"], domain="d"),
            helper.make_node("Gemm", ["q", "w"], ["y"]),
        ],
        (WEIGHTS,),
    )
    proto.functions.extend(made)
    return proto


def recursive() -> onnx.ModelProto:
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
    call = helper.make_node("f", ["a"], ["b"], domain="d")
    proto = model([helper.make_node("f", ["x"], ["q"], domain="d"), LAYER], (WEIGHTS,))
    proto.functions.append(helper.make_function("d", "f", ["a"], ["b"], [call], sets))
    return proto


def chained(length: int) -> onnx.ModelProto:
    relus = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(length)]
    first = helper.make_node("Gemm", ["x", "w"], ["v0"])
    return model([first, *relus, helper.make_node("Relu", [f"v{length}"], ["y"])], (WEIGHTS,))


def outer() -> onnx.ModelProto:
    """A product of two weights, which onnxruntime works out when it loads the file."""
    nodes = [helper.make_node("Gemm", ["u", "v"], ["w"]), LAYER]
    return model(nodes, (tensor("u", np.ones((100_000, 1))), tensor("v", np.ones((1, 100_000)))))


def attribute(location: str) -> onnx.ModelProto:
    constant = helper.make_node("Constant", [], ["w"], value=external(location))
    return model([constant, LAYER])


def without_shape() -> onnx.ModelProto:
    proto = model([LAYER], (WEIGHTS,))
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    return proto


def without_operators_set() -> onnx.ModelProto:
    proto = model([LAYER], (WEIGHTS,))
    del proto.opset_import[:]
    return proto


class _Bytes:
    """A model as bytes that no library would write."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def SerializeToString(self) -> bytes:  # noqa: N802 -- as protobuf calls it
        return self._content


def nameless() -> _Bytes:
    content = model([LAYER], (WEIGHTS,)).SerializeToString()
    return _Bytes(content.replace(b"layerlab.features", b"layerlab.\xff\xfe\xff\xfe\xff\xfe\xff\xfe"))


# A model, and what is said of it.
MODELS: dict[str, tuple[Any, str]] = {
    "data beside it": (lambda: model([LAYER], (external("weights.bin"),)), "kept in another file"),
    "data above it": (lambda: model([LAYER], (external("../weights.bin"),)), "kept in another file"),
    "data elsewhere": (lambda: model([LAYER], (external("/etc/passwd"),)), "kept in another file"),
    "data without an end": (lambda: model([LAYER], (external("/dev/zero"),)), "kept in another file"),
    "data in a constant": (lambda: attribute("../weights.bin"), "kept in another file"),
    "name that draws": (lambda: model([helper.make_node("\x1b[31m", ["x"], ["y"])]), "operator '\ufffd[31m'"),
    "shape without numbers": (lambda: model([LAYER], (shaped(2, 2**40),)), "numbers of its shape"),
    "shape that overflows": (lambda: model([LAYER], (shaped(2**33, 2**33),)), "numbers of its shape"),
    "shape below 0": (lambda: model([LAYER], (shaped(-2, -1),)), "numbers of its shape"),
    "shape of nothing": (lambda: model([LAYER], (shaped(2, 0, data=b""),)), "numbers of its shape"),
    "weights of text": (lambda: model([LAYER], (tensor("w", ["a", "b"], object),)), "numbers of its shape"),
    "more inputs than weights": (
        lambda: model([LAYER], (WEIGHTS,), 2**40),
        "a layer of 2 inputs takes 1",
    ),
    "input without a shape": (without_shape, "a layer of 2 inputs takes 0"),
    "layer without an input": (lambda: model([helper.make_node("Gemm", [], ["y"])]), "not a chain"),
    "name that is no text": (nameless, "not UTF-8 text"),
    "no set of operators": (without_operators_set, "does not say which operators"),
    "terabytes": (lambda: filled(10**12), "floating-point"),
    "gigabytes": (lambda: filled(10**9), "floating-point"),
    "doubling": (doubled, "operator 'Identity'"),
    "loop": (endless, "floating-point"),
    "functions of functions": (lambda: functions(40), "functions"),
    "function of itself": (recursive, "functions"),
    "product of weights": (outer, "not a chain"),
    "cycle": (
        lambda: model([helper.make_node("Relu", ["b"], ["b"]), LAYER], (WEIGHTS,)),
        "not a chain",
    ),
    "unknown operator": (lambda: model([helper.make_node("Pwn", ["x"], ["y"])]), "operator 'Pwn'"),
    "operator of others": (
        lambda: model([helper.make_node("Gemm", ["x", "w"], ["y"], domain="d")], (WEIGHTS,)),
        "operator 'Gemm'",
    ),
    "transposed batch": (
        lambda: model([helper.make_node("Gemm", ["x", "w"], ["y"], transA=1)], (WEIGHTS,)),
        "operator 'Gemm'",
    ),
    "output of another": (
        lambda: model([LAYER, helper.make_node("Relu", ["y"], ["z"])], (WEIGHTS,)),
        "not that of its last",
    ),
    "too many operators": (lambda: chained(5000), "more than 1000 operators"),
    "names nested deeply": (lambda: model([LAYER], (WEIGHTS,), features="[" * 10**6), "not a list of names"),
    "names that are none": (lambda: model([LAYER], (WEIGHTS,), outputs="[1, null]"), "not a list of names"),
    "number of a million digits": (lambda: model([LAYER], (WEIGHTS,), classes="9" * 10**6), "not a list"),
}


@pytest.fixture
def rows(empty_folder: Path) -> Path:
    path = empty_folder / "rows.csv"
    path.write_text("a,b\n1,2\n3,4\n")
    (empty_folder / "weights.bin").write_bytes(b"\0" * 8)
    (empty_folder.parent / "weights.bin").write_bytes(b"\0" * 8)
    return path


def test_the_model_that_the_others_are_made_from_is_good(rows: Path, layerlab_cli: Any) -> None:
    """Or the refusals below would say nothing."""
    Path("good.onnx").write_bytes(model([LAYER], (WEIGHTS,)).SerializeToString())
    assert layerlab_cli("verify", "good.onnx").code == 0
    assert layerlab_cli("predict", "good.onnx", rows).stdout == "y\n5.0\n11.0\n"
    Path("good.onnx").write_bytes(chained(900).SerializeToString())
    assert layerlab_cli("verify", "good.onnx").code == 0


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_is_no_network_is_not_run(rows: Path, layerlab_cli: Any, name: str) -> None:
    """`verify` and `predict` say why in one line and exit with 1, whatever the graph would do."""
    make, said = MODELS[name]
    Path("evil.onnx").write_bytes(make().SerializeToString())
    before = listing(rows.parents[1])
    checked = layerlab_cli("verify", "evil.onnx")
    (line,) = [line for line in whole(checked).splitlines() if line.startswith("FAIL")]
    assert (checked.code, said in line) == (1, True), line
    predicted = layerlab_cli("predict", "evil.onnx", rows, "--output", "out.csv")
    assert (predicted.code, predicted.stdout, said in predicted.stderr) == (1, "", True), predicted.stderr
    assert len(whole(predicted).splitlines()) == 1
    assert listing(rows.parents[1]) == before


@pytest.mark.parametrize("suffix", [".json", ".pbtxt", ".txtpb", ".onnxtxt", ""])
def test_a_name_chooses_no_parser(rows: Path, layerlab_cli: Any, suffix: str) -> None:
    """A file is read as an ONNX file whatever its name: text is none, and a model stays one."""
    named = Path(f"model{suffix}")
    for text in ('{"name": "package", "version": "1.0.0"}\n', "ir_version: 8\n", "<ir_version: 8>\n"):
        named.write_text(text)
        checked = layerlab_cli("verify", named)
        (line,) = [line for line in whole(checked).splitlines() if line.startswith("FAIL")]
        assert (checked.code, f"{named}: not an ONNX file" in line) == (1, True), line
        predicted = layerlab_cli("predict", named, rows)
        assert (predicted.code, len(whole(predicted).splitlines())) == (1, 1)
    named.write_bytes(model([LAYER], (WEIGHTS,)).SerializeToString())
    assert layerlab_cli("verify", named).code == 0


BOUNDED = """
import resource, sys
from contextlib import suppress
from pathlib import Path
from layerlab.errors import LayerlabError
from layerlab.modelfile import verify
from layerlab.prediction import predict_table

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[1:]:
    assert not verify(name).ok, name
    try:
        predict_table(Path(name), Path("rows.csv"))
    except LayerlabError:
        pass
    else:
        raise AssertionError(name)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_refusing_models_takes_neither_memory_nor_time(rows: Path) -> None:
    """All of them one after the other: seconds, which the system holds it to, and less than 300 MB."""
    names = []
    for i, (make, _) in enumerate(MODELS.values()):
        names.append(f"{i}.onnx")
        Path(names[-1]).write_bytes(make().SerializeToString())
    code = f"import resource; resource.setrlimit(resource.RLIMIT_CPU, (30, 30))\n{BOUNDED}"
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) < 300 * 1024


def test_metadata_is_shown_as_one_short_line_each(rows: Path, layerlab_cli: Any) -> None:
    """Keys and values with control characters, lines or a million characters draw nothing."""
    odd = {"tier": "\x1b[2J\n\ngone", "\x1b[31m\u202e": "x", "run_id": "r" * 10**6, "data": "\u202etxt"}
    names = json.dumps(["\x1b[31m" + "c" * 10**5])
    Path("odd.onnx").write_bytes(model([LAYER], (WEIGHTS,), classes=names, **odd).SerializeToString())
    result = layerlab_cli("verify", "odd.onnx")
    assert (result.code, result.stderr) == (0, "")
    assert max(map(len, whole(result).splitlines())) < 200
    predicted = layerlab_cli("predict", "odd.onnx", rows)
    assert whole(predicted).splitlines()[1].startswith("\ufffd[31mccc")


def test_a_key_of_the_metadata_is_given_once(rows: Path, layerlab_cli: Any) -> None:
    """Two lists of columns, one for who looks and one for who computes, are refused."""
    proto = model([LAYER], (WEIGHTS,))
    proto.metadata_props.add(key="features", value='["b", "a"]')
    Path("twice.onnx").write_bytes(proto.SerializeToString())
    for command in (("verify", "twice.onnx"), ("predict", "twice.onnx", rows)):
        result = layerlab_cli(*command)
        assert result.code == 1
        assert "metadata 'features' is given twice" in whole(result)


# Names.

NAMES = {
    "above": "../../outside",
    "absolute": "/tmp/outside",
    "backslashes": "..\\..\\outside",
    "dots": "..",
    "hidden": ".hidden",
    "long": "n" * 200,
    "right to left": "abc\u202etxt.exe",
    "zero width": "a\u200bb",
    "homoglyph": "n\N{CYRILLIC SMALL LETTER U}mpy",
    "escape": "\x1b[2J\x1b[31mred",
    "lines": "a\nerror: b",
    "nul": "a\0b",
    "shell": "$(touch ran); `touch ran`",
    "glob": "*",
    "device": "con",
    "formula": "=cmd|' /C calc'!A0",
}


@pytest.mark.parametrize("kind", NAMES)
def test_a_name_is_a_name_and_no_place(folder: Path, layerlab_cli: Any, kind: str) -> None:
    """As run, experiment and column: refused with 2, or a run with its file in ``models``, and no more."""
    name = NAMES[kind]
    column = name.replace("\0", "")
    text = io.StringIO()
    csv.writer(text).writerows([[column, "y"], *([i, 3 * i] for i in range(1, 5))])
    (folder / "rows.csv").write_text(text.getvalue())
    outside = listing(folder.parent) - {f"work/{path}" for path in listing(folder)}
    result = layerlab_cli(
        *("run", "--plugin", "numpy", "--steps", 1, "--hidden", 2, "--lr", 1e-3),
        *("--data", "rows.csv", "--target", "y", "--name", name, "--experiment", name),
    )
    whole(result)
    models = {path.parent for path in folder.rglob("*.onnx") if "mlruns" not in path.parts}
    if not name.isprintable():
        assert (result.code, result.stdout, models) == (2, "", set())
    else:
        assert (result.code, models) == (0, {folder / "models"})
    assert listing(folder.parent) - {f"work/{path}" for path in listing(folder)} == outside
    assert {path.partition("/")[0] for path in listing(folder)} <= {
        *("models", "mlruns", "mlflow.db", "mlflow.db.lock", "rows.csv", ".layerlab")
    }
    assert not Path("/tmp/outside").exists()


@pytest.mark.parametrize("kind", NAMES)
def test_a_name_that_selects_nothing_is_told_in_one_line(
    empty_folder: Path, layerlab_cli: Any, kind: str
) -> None:
    """As tier, file, column, key, setting, check or new plugin: 2 or 1, printable, and nothing is written."""
    name = NAMES[kind].replace("\0", "")
    Path("good.csv").write_text("a,y\n1,2\n3,4\n")
    Path("odd.csv").write_text(f'"{name}",y\nword,2\nword,4\n')
    Path("odd.yaml").write_text(json.dumps({name: 1}))
    before = listing(empty_folder.parent)
    for command in (
        ("run", f"--plugin={name}"),
        ("run", f"--data={name}"),
        ("run", f"--data={name}.csv", "--target=y"),
        ("run", "--data=good.csv", f"--target={name}"),
        ("run", "--data=odd.csv", "--target=y"),
        ("run", "--data=odd.csv", "--target=z"),
        ("run", f"--config={name}"),
        ("run", "--config=odd.yaml"),
        ("run", f"--set={name}=1"),
        ("run", f"--set={name}"),
        ("run", f"--init={name}"),
        ("plugins", "show", f"x{name}"),
        ("plugins", "new", f"{name}/x y"),
        ("check", f"x{name}"),
        ("check", "nn", f"--only={name}"),
        ("verify", f"{name}.onnx"),
        ("predict", f"{name}.onnx", "good.csv"),
    ):
        result = layerlab_cli(*command)
        assert (result.code, result.stdout) == (2, ""), command
        assert [line.partition(":")[0] for line in whole(result).splitlines()] in (
            ["error"],
            ["error", "hint"],
        )
    assert listing(empty_folder.parent) == before


def test_a_plugin_with_an_odd_name_draws_nothing(site: Site, empty_folder: Path, layerlab_cli: Any) -> None:
    """Names and versions of distributions and tiers are others' text, wherever they are shown."""
    head = "Metadata-Version: 2.1\nName: a-dist\nVersion: 1.0\x1b[31m\n"
    site.add("a-dist", {"al\x1b[31mpha": "MODULE:Good", "../up": "MODULE:Good"}, TIERS, metadata=head)
    site.allow("a-dist")
    for command in (
        ("plugins",),
        ("plugins", "--check"),
        ("plugins", "show", "al\ufffd[31mpha"),
        ("run", "--plugin", "al\ufffd[31mpha", "--print-config"),
        ("run", "--plugin", "al\x1b[31mpha"),
        ("run", "--plugin", "nope"),
    ):
        whole(layerlab_cli(*command))
    assert listing(empty_folder) == set()


# What a spreadsheet would run.

CALC = "=cmd|' /C calc'!A0"
FORMULAS = [CALC, "+1+1", "-2+3", "@SUM(1,1)", "=1\t+1", "\t=1+1", "a;=1+1", "\uff1d1+1", ' "=1']


@pytest.mark.parametrize("name", FORMULAS)
def test_what_would_be_a_formula_becomes_text(name: str) -> None:
    """However a spreadsheet splits the line, no cell begins with what makes it compute."""
    written = harmless(name)
    cells = [cell.strip().strip('"') for part in written.split(";") for cell in part.split("|")]
    assert [cell for cell in cells if cell[:1] in set("=+-@\t\r\uff1d\uff0b\uff0d\uff20")] == []


@pytest.mark.parametrize(
    "name", ["-1", "+1.5", "-", "+", "-1e-3", "a-b", "x=1", "me@example.org", "\u00e4", ""]
)
def test_other_names_stay_as_they_are(name: str) -> None:
    """A number or a sign computes nothing, and what is within a name is no beginning."""
    assert harmless(name) == name


def test_a_table_with_formulas_ends_as_text(folder: Path, layerlab_cli: Any) -> None:
    """Class labels and columns of a table come back in what `predict` writes: a spreadsheet computes none."""
    label, other = CALC, "@SUM(1+1)"
    table = io.StringIO()
    csv.writer(table).writerows([["+1+1", "kind"], *([i, (label, other)[i % 2]] for i in range(20))])
    Path("evil.csv").write_text(table.getvalue())
    flags = ("--plugin", "optim", "--epochs", 1, "--hidden", 2)
    run = layerlab_cli("run", "--data", "evil.csv", "--target", "kind", *flags, "--json")
    path = json.loads(run.stdout)["runs"][0]["onnx"]["path"]
    result = layerlab_cli("predict", path, "evil.csv")
    header, *found = csv.reader(io.StringIO(whole(result)))
    assert header == ["class", f"'{CALC}", "'@SUM(1+1)"]
    assert {row[0] for row in found} <= set(header[1:])
    assert layerlab_cli("predict", path, "evil.csv", "-o", "out.csv").code == 0
    assert Path("out.csv").read_text() == result.stdout


def test_text_that_the_terminal_does_not_know_is_no_traceback(rows: Path) -> None:
    """Where stdout is not UTF-8, what it lacks is written as an escape."""
    Path("odd.onnx").write_bytes(model([LAYER], (WEIGHTS,), outputs='["\u00e4"]').SerializeToString())
    done = subprocess.run(
        [sys.executable, "-m", "layerlab", "predict", "odd.onnx", "rows.csv"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\xe4\n5.0\n11.0\n", "")


def forged(folder: Path, uri: str, *lines: dict[str, Any]) -> str:
    """A journal that somebody else left in the folder, of a run that nobody ever began."""
    run_id = "0123456789abcdef" * 2
    info = {"experiment": "x", "name": "x", "params": {}, "tags": {}, "spec_yaml": None, "dataset": None}
    header = {"run_id": run_id, "experiment_id": None, "tracking_uri": uri, "info": info}
    header |= {"host": "elsewhere", "pid": 1, "version": 1}
    path = folder / ".layerlab" / "runs" / f"{run_id}.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in ({"header": header}, *lines)))
    return run_id


def test_a_journal_that_somebody_left_sends_no_file_from_elsewhere(folder: Path, layerlab_cli: Any) -> None:
    """`layerlab sync` sends what the journal has, but for files of other folders."""
    secret = folder.parent / "secret.txt"
    secret.write_text("do not tell")
    forged(folder, "sqlite:///mlflow.db", {"file": str(secret)}, {"file": "../secret.txt"})
    result = layerlab_cli("sync", "--quiet")
    assert result.code == 1
    assert "is not in this folder, and is not sent" in result.stderr
    assert list(folder.rglob("secret.txt")) == []


@pytest.mark.parametrize("name", [".layerlab", ".layerlab/runs", "checkpoints", "models", "comparisons"])
def test_nothing_is_written_through_a_folder_that_is_a_link(
    name: str, folder: Path, layerlab_cli: Any, client: Any
) -> None:
    """They may have come with a folder that somebody else made: a line, and nothing here or there."""
    outside = folder.parent / "outside"
    outside.mkdir()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(outside)
    arguments = ["-p", "nn", *(f"--{key.replace('_', '-')}={value}" for key, value in TINY.items())]
    command = ["compare", "-p", "optim"] if name == "comparisons" else ["run", "--checkpoint-every", "2"]
    result = layerlab_cli(*command, *arguments, "--quiet")
    assert result.code == 2
    assert f"{name} is a link, and nothing is written outside of this folder" in result.stderr
    assert layerlab_cli("sync", "--quiet").code == 0
    assert list(outside.iterdir()) == []
    assert all(run.info.status != "RUNNING" for run in client.search_runs(["0", "1"]))


def test_nothing_is_written_through_files_that_are_links(folder: Path, layerlab_cli: Any) -> None:
    """Neither through one to nowhere, nor where the name of what is to come is known."""
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    (folder / ".layerlab").mkdir()
    (folder / ".layerlab" / ".gitignore").symlink_to(outside / "new")
    started = [f"--{key.replace('_', '-')}={value}" for key, value in TINY.items()]
    first = layerlab_cli("run", "-p", "nn", *started, "--checkpoint-every", "2", "--json")
    assert first.code == 0
    run_id = json.loads(first.stdout)["runs"][0]["run_id"]
    (folder / "models" / f".nn-{run_id[:8]}.onnx.unchecked").symlink_to(outside / "precious")
    assert layerlab_cli("resume", run_id, "--steps", "20", "--quiet").code == 0
    assert [path.name for path in outside.iterdir()] == ["precious"]
    assert (outside / "precious").read_text() == "mine"


def test_a_lock_that_is_a_link_is_refused(folder: Path) -> None:
    """What it leads to is not emptied, and the store is not opened."""
    precious = folder.parent / "precious"
    precious.write_text("mine")
    (folder / "mlflow.db.lock").symlink_to(precious)
    with pytest.raises(TrackingError, match="cannot be opened"):
        Store()
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("uri", ["postgresql://me:pa/ss@db/x", "http://me:pa?ss@db", "mysql://me:pa#ss@db/x"])
def test_a_password_that_would_be_taken_for_a_host_is_refused(uri: str, layerlab_cli: Any) -> None:
    """A part of it would be recorded as the name of a server."""
    result = layerlab_cli("run", "-p", "nn", "--steps", 3, "--tracking-uri", uri, "--quiet")
    assert (result.code, result.stdout) == (2, "")
    assert "has an '@' after what should be its host" in result.stderr
    assert "ss@" not in result.stderr


DEEP = "[" * 100_000
NO_TAGS = {"header": {"run_id": "0" * 32, "experiment_id": None, "tracking_uri": "", "info": {"tags": 3}}}


@pytest.mark.parametrize(
    "content",
    ["", "x\n", "3\n", "{}\n", f"{DEEP}\n", json.dumps(NO_TAGS) + "\n", '{"header": {"version": 9}}\n'],
)
def test_a_journal_that_is_none_stops_nothing(folder: Path, layerlab_cli: Any, content: str) -> None:
    """Other commands pass it over; sync says what it is."""
    path = folder / ".layerlab" / "runs" / f"{'0' * 32}.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(f"{content}\n")
    (folder / ".layerlab" / "last.json").write_text('{"run_id": "../../x", "tracking_uri": 3}')
    assert layerlab_cli("plugins").code == 0
    result = layerlab_cli("sync", "--quiet")
    assert result.code == 1
    assert len(whole(result).splitlines()) == 1
    assert "no run began in this folder" in whole(layerlab_cli("resume", "--last"))


ONE = base64.b64encode(np.ones(1).tobytes()).decode()
ODD_TIMES = [[math.nan, 1.0], [1.0, math.inf], [1e300, 1.0], [[1.0], 1.0], [1.0]]


@pytest.mark.parametrize(
    "entry",
    [
        {"series": "x"},
        {"metrics": 3},
        {"series": "x", "f8": "!", "step": 0, "times": 1},
        *({"series": "x", "f8": ONE, "step": 0, "times": times} for times in ODD_TIMES),
    ],
)
def test_entries_that_are_none_are_named(folder: Path, layerlab_cli: Any, entry: dict[str, Any]) -> None:
    """In one line, and the journal stays."""
    run_id = forged(folder, "sqlite:///mlflow.db", entry)
    result = layerlab_cli("sync", "--quiet")
    assert result.code == 1
    assert "damaged" in whole(result)
    assert (folder / ".layerlab" / "runs" / f"{run_id}.jsonl").exists()


def test_a_journal_that_somebody_left_calls_nobody(folder: Path, layerlab_cli: Any) -> None:
    """Any other command than sync leaves a store alone that is not the user's own."""
    with socket.socket() as server:
        server.bind(("127.0.0.2", 0))
        server.listen(1)
        server.settimeout(0)
        run_id = forged(folder, f"http://127.0.0.2:{server.getsockname()[1]}")
        path = folder / ".layerlab" / "runs" / f"{run_id}.jsonl"
        path.write_text(path.read_text().replace('"experiment_id": null', '"experiment_id": "1"'))
        result = layerlab_cli("plugins")
        with pytest.raises(BlockingIOError):
            server.accept()
    assert result.code == 0
    goes_on = f"go on with it: layerlab resume {run_id}"
    assert result.stderr == f"run {run_id} was killed; {goes_on}; its store is told by: layerlab sync\n"
    assert layerlab_cli("plugins").stderr == "", "once is enough"


@pytest.mark.parametrize("where", ["environment", "journal"])
def test_a_store_whose_address_is_none_stops_no_other_command(
    folder: Path, layerlab_cli: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Neither the user's own, nor that of a journal: sync says what is wrong, and nobody the password."""
    uri = "postgresql://me:s3cret[pw@127.0.0.1:1/db"
    if where == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run_id = forged(folder, "sqlite:///mlflow.db" if where == "environment" else uri)
    path = folder / ".layerlab" / "runs" / f"{run_id}.jsonl"
    path.write_text(path.read_text().replace('"experiment_id": null', '"experiment_id": "1"'))
    result = layerlab_cli("plugins")
    goes_on = f"go on with it: layerlab resume {run_id}"
    assert result.code == 0
    assert result.stderr == f"run {run_id} was killed; {goes_on}; its store is told by: layerlab sync\n"
    result = layerlab_cli("sync", "--quiet")
    assert result.code == 1
    assert "the tracking URI (postgresql://...) has a character" in whole(result)
    assert "s3cret" not in result.stderr


def test_a_store_and_a_journal_that_somebody_left_write_nowhere_unasked(
    folder: Path, client: Any, layerlab_cli: Any
) -> None:
    """A run whose artifacts would go elsewhere, and a link: another command than sync writes neither."""
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    run_id = client.create_run(client.create_experiment("x", str(outside))).info.run_id
    forged(folder, "sqlite:///mlflow.db", {"text": "evil", "name": "authorized_keys"})
    (path,) = (folder / ".layerlab" / "runs").iterdir()
    content = path.read_text().replace("0123456789abcdef" * 2, run_id)
    content = content.replace('"experiment_id": null', '"experiment_id": "1"')
    path.unlink()
    path.with_name(f"{run_id}.jsonl").write_text(content)
    path.with_name(f"{run_id}.sent").symlink_to(outside / "precious")
    assert layerlab_cli("plugins").code == 0
    assert client.get_run(run_id).info.status == "KILLED"
    assert [path.name for path in outside.iterdir()] == ["precious"]
    layerlab_cli("sync")
    assert (outside / "precious").read_text() == "mine"


@pytest.fixture
def repository(empty_folder: Path) -> Path:
    """A git repository with a file that was changed, and a program that notes that it was run."""
    (empty_folder / "notes").write_text("one")
    program = empty_folder / "program"
    program.write_text("#!/bin/sh\necho ran >> was-run\n")
    program.chmod(0o755)
    (empty_folder / "old").write_text("")
    git("init", "-q")
    git("add", "notes", "old")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    os.utime("old", (1, 1))  # git alone looks at it again, and writes down that it did
    (empty_folder / "notes").write_text("two")
    return empty_folder


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.parametrize("kind", ["monitor", "hook", "filter", "included", "process", "remote"])
def test_a_repository_runs_nothing(repository: Path, kind: str) -> None:
    """What its configuration names is not run; for changes nobody looks where filters would be."""
    program = str(repository / "program")
    if kind == "monitor":
        git("config", "core.fsmonitor", program)
    elif kind == "hook":
        shutil.copy(program, ".git/hooks/post-index-change")
    elif kind == "remote":
        for name, value in {
            "core.repositoryformatversion": "1",
            "extensions.partialClone": "origin",
            "remote.origin.url": str(repository),
            "remote.origin.uploadpack": program,
        }.items():
            git("config", name, value)
        tree = git("rev-parse", "HEAD^{tree}")
        Path(".git/objects", tree[:2], tree[2:]).unlink()
    else:
        Path(".git/info/attributes").write_text("notes filter=a=b\n")
        config = ".git/more" if kind == "included" else ".git/config"
        git("config", "-f", config, f"filter.a=b.{'process' if kind == 'process' else 'clean'}", program)
        if kind == "included":
            git("config", "include.path", "more")
    tags = source_tags("x")
    assert not Path("was-run").exists()
    assert tags["mlflow.source.git.commit"] == git("rev-parse", "HEAD")
    assert tags.get("layerlab.git_dirty") == ("true" if kind in {"monitor", "hook"} else None)
    with suppress(subprocess.CalledProcessError):
        git("status")
    assert Path("was-run").exists(), "git alone runs it"


def test_a_file_whose_name_is_no_text_is_a_change(repository: Path) -> None:
    """Git says its bytes as they are where it is told to."""
    git("config", "core.quotePath", "false")
    name = os.fsdecode(b"\xff")
    Path(name).write_text("x")
    git("add", name)
    assert source_tags("x")["layerlab.git_dirty"] == "true"
