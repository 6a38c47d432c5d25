"""The spec: how it is put together, what it refuses, and how it is resolved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import layerlab
from helpers import BUILTINS
from layerlab.errors import SpecError
from layerlab.planning import resolve
from layerlab.spec import BUNDLED, FLAGS, ExperimentSpec, build_spec
from layerlab.tier import Recipe

EXPERIMENTS = sorted((Path(__file__).parents[1] / "experiments").glob("*.yaml"))
RECIPE = Recipe(optimizer="adam", lr=0.5, init="normal", bias=False)
ALL_KEYS = {
    *("plugins", "experiment", "name", "export", "net.hidden", "net.init", "net.bias", "data.name"),
    *("data.val_fraction", "train.batch_size", "train.lr", "train.seed", "train.accelerator"),
    "train.precision",
}


def written(folder: Path, text: str) -> Path:
    path = folder / "spec.yaml"
    path.write_text(text)
    return path


def refused(**arguments: Any) -> SpecError:
    with pytest.raises(SpecError) as raised:
        build_spec(**arguments)
    return raised.value


def length(spec: ExperimentSpec) -> tuple[int | None, int | None]:
    return spec.train.steps, spec.train.epochs


# How it is put together.


def test_nothing_said_is_the_main_job() -> None:
    """Without a file, settings or flags it is `custom-module` on random data, the rest left to the recipe."""
    spec = build_spec()
    assert spec == ExperimentSpec()
    assert (spec.plugins, spec.data.name, spec.experiment) == (("custom-module",), "random", "layerlab")
    assert (spec.train.lr, spec.train.steps, spec.net.init, spec.net.bias) == (None, None, None, None)


def test_flags_win_over_settings_and_settings_over_the_file(tmp_path: Path) -> None:
    """Of file, ``--set`` and flag the later says; what only one of them says stays."""
    file = written(tmp_path, "net: {hidden: 1}\ntrain: {lr: 0.1, seed: 1, batch_size: 1}\n")
    spec = build_spec(config=file, settings=["train.lr=0.2", "train.seed=2"], flags={"lr": 0.3, "name": "me"})
    assert (spec.net.hidden, spec.train.batch_size) == (1, 1), "said by the file only"
    assert (spec.train.seed, spec.train.lr, spec.name) == (2, 0.3, "me")


def test_of_two_settings_of_one_key_the_later_says() -> None:
    """As with flags on any command line, the last one counts."""
    assert build_spec(settings=["train.lr=1", "train.lr=2"]).train.lr == 2


def test_a_flag_that_is_not_given_changes_nothing(tmp_path: Path) -> None:
    """None stands for a flag that was left out: the file's value stays; False is a value."""
    file = written(tmp_path, "export: true\nnet: {bias: true}\n")
    spec = build_spec(config=file, flags=dict.fromkeys(FLAGS))
    assert spec == build_spec(config=file)
    assert build_spec(config=file, flags={"export": False, "bias": False}).as_dict()["export"] is False


def test_a_setting_can_replace_a_whole_part() -> None:
    """Values of ``--set`` are YAML: mappings and lists too."""
    spec = build_spec(settings=["train={steps: 7, lr: 0.1}", "plugins=[nn, optim]", "train.seed=3"])
    assert (spec.train.steps, spec.train.lr, spec.train.seed) == (7, 0.1, 3)
    assert spec.plugins == ("nn", "optim")


def test_one_name_is_a_list_of_one(tmp_path: Path) -> None:
    """``plugins: nn`` and ``target: price`` need no brackets."""
    file = written(tmp_path, "plugins: nn\ndata: {name: houses.csv, target: price}\n")
    spec = build_spec(config=file)
    assert (spec.plugins, spec.data.target) == (("nn",), ("price",))


@pytest.mark.parametrize(
    ("file", "settings", "flags", "expected"),
    [
        ("train: {steps: 5}", [], {"epochs": 2}, (None, 2)),
        ("train: {epochs: 5}", [], {"steps": 2}, (2, None)),
        ("train: {steps: 5}", ["train.epochs=3"], {}, (None, 3)),
        ("train: {epochs: 5}", ["train.steps=3"], {"epochs": 2}, (None, 2)),
        ("train: {epochs: 5}", ["train.steps=3"], {"lr": 0.1}, (3, None)),
    ],
)
def test_steps_and_epochs_take_each_other_back(
    tmp_path: Path, file: str, settings: list[str], flags: dict[str, Any], expected: tuple[Any, Any]
) -> None:
    """A later layer that says one takes back what an earlier one said of the other."""
    spec = build_spec(config=written(tmp_path, file), settings=settings, flags=flags)
    assert length(spec) == expected


def test_steps_and_epochs_in_one_file_are_refused(tmp_path: Path) -> None:
    """Within a file neither is the later one."""
    error = refused(config=written(tmp_path, "train: {steps: 1, epochs: 1}"))
    assert "train: steps and epochs exclude each other" in str(error)


@pytest.mark.parametrize("flags", [{"steps": 3, "epochs": 4}, {"epochs": 4, "steps": 3}])
def test_steps_and_epochs_as_flags_are_refused(flags: dict[str, int]) -> None:
    """Two flags are one layer: neither takes the other back, and neither is silently ignored."""
    assert "steps and epochs exclude each other" in str(refused(flags=flags))


# What YAML makes of it.


@pytest.mark.parametrize("text", ["1e-3", "'1e-3'", "1.0e-3", "0.001", "1E-3"])
def test_a_rate_in_scientific_notation_is_a_number(tmp_path: Path, text: str) -> None:
    """YAML 1.1 reads ``1e-3`` as text; the spec reads the number that is meant."""
    assert build_spec(config=written(tmp_path, f"train: {{lr: {text}}}")).train.lr == 0.001
    assert build_spec(settings=[f"train.lr={text}"]).train.lr == 0.001


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("train:\n  steps: 1\n  lr: 1\n  steps: 2\n", "steps", 4),
        ("net: {}\nnet: {}\n", "net", 2),
        ("train: {lr: 1, 'lr': 2}\n", "lr", 1),
    ],
)
def test_a_key_given_twice_is_refused(tmp_path: Path, text: str, key: str, line: int) -> None:
    """Plain YAML keeps the last one in silence; here the key and its line are named."""
    file = written(tmp_path, text)
    assert str(refused(config=file)) == f"{file}: key '{key}' is given twice (line {line})"


@pytest.mark.parametrize(
    "text",
    [
        "name: !!python/object/apply:os.getcwd []",
        "name: !!python/name:os.getcwd",
        "name: !mine x",
        "!mine {name: x}",
    ],
)
def test_tags_are_refused(tmp_path: Path, text: str) -> None:
    """A spec is data: nothing in it makes an object."""
    error = refused(config=written(tmp_path, text))
    assert "(line 1): values are plain" in str(error)
    assert "(line 1)" in str(error)


@pytest.mark.parametrize("text", ["{a: b}: 2\n", "[1, 2]: 3\n", "? {a: b}\n: 2\n", "1: 2\n", "null: 2\n"])
def test_keys_that_are_not_text_are_refused(tmp_path: Path, text: str) -> None:
    """Mappings, lists, numbers and nothing can be keys in YAML, and are none of the spec's."""
    assert str(refused(config=written(tmp_path, text))).startswith(f"{tmp_path / 'spec.yaml'}: ")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "the file is empty"),
        ("# nothing but a comment\n", "the file is empty"),
        ("- plugins\n", "not a mapping of keys to values"),
        ("plugins\n", "not a mapping of keys to values"),
        ("train: {lr: 1\n", "not valid YAML: expected ',' or '}', but got '<stream end>' (line 2)"),
        ("train:\n\tlr: 1\n", r"not valid YAML: found character '\t' that cannot start any token (line 2)"),
        ("name: a\n---\nname: b\n", "not valid YAML: but found another document (line 2)"),
        ("name: 2020-13-45\n", "not valid YAML: month must be in 1..12"),
    ],
)
def test_a_file_that_is_no_spec_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    """What is wrong with the file as a whole is said with its path, and with the line where there is one."""
    file = written(tmp_path, text)
    assert str(refused(config=file)) == f"{file}: {complaint}"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Missing, a folder, or not UTF-8."""
    assert str(refused(config=tmp_path / "no.yaml")) == f"{tmp_path / 'no.yaml'}: no such file"
    assert str(refused(config=tmp_path)) == f"{tmp_path}: cannot be read: Is a directory"
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("name: caf\N{LATIN SMALL LETTER E WITH ACUTE}".encode("latin-1"))
    assert str(refused(config=latin)) == f"{latin}: cannot be read: not UTF-8 text"


# Keys and values that are refused.


@pytest.mark.parametrize(
    ("setting", "message", "hint"),
    [
        ("train.stesp=1", "unknown key 'train.stesp'", "did you mean 'steps'?"),
        ("net.hiden=1", "unknown key 'net.hiden'", "did you mean 'hidden'?"),
        ("data.targt=x", "unknown key 'data.targt'", "did you mean 'target'?"),
        ("Train.lr=1", "unknown key 'Train'", "did you mean 'train'?"),
        ("plugin=nn", "unknown key 'plugin'", "did you mean 'plugins'?"),
        ("net.zzz=1", "unknown key 'net.zzz'", "there are: bias, hidden, init"),
    ],
)
def test_an_unknown_key_is_named_with_the_closest_one(
    tmp_path: Path, setting: str, message: str, hint: str
) -> None:
    """The keys of the same part are offered; of a file the path is said too."""
    error = refused(settings=[setting])
    assert (str(error), error.hint) == (message, hint)
    dotted, _, value = setting.partition("=")
    *part, key = dotted.split(".")
    file = written(tmp_path, f"{part[0]}: {{{key}: {value}}}" if part else f"{key}: {value}")
    error = refused(config=file)
    assert (str(error), error.hint) == (f"{file}: {message}", hint)


def test_an_unknown_keyword_is_refused() -> None:
    """`layerlab.run` takes the names of the flags, and says which one may be meant."""
    with pytest.raises(layerlab.SpecError) as raised:
        layerlab.run(step=5)
    assert (str(raised.value), raised.value.hint) == ("unknown keyword 'step'", "did you mean 'steps'?")


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("train.steps", "--set train.steps: not an assignment"),
        ("=5", "--set =5: not an assignment"),
        ("net.hidden.x=1", "net.hidden: should be a whole number"),
        ("name=[1", "--set name: not valid YAML: expected ',' or ']', but got '<stream end>' (line 1)"),
        ("train={lr: 1, lr: 2}", "--set train: key 'lr' is given twice (line 1)"),
    ],
)
def test_a_setting_that_is_none_is_named(setting: str, complaint: str) -> None:
    """What is wrong with a ``--set`` is said with its key."""
    assert str(refused(settings=[setting])) == complaint


def test_a_setting_below_a_plain_value_is_refused(tmp_path: Path) -> None:
    """A number has no keys."""
    file = written(tmp_path, "net: {hidden: 3}")
    error = refused(config=file, settings=["net.hidden.x=1"])
    assert str(error) == "--set net.hidden.x: 'hidden' is not a mapping, so it has no 'x'"


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("train.steps", 0, "should be at least 1, got 0"),
        ("train.steps", -1, "should be at least 1, got -1"),
        ("train.steps", True, "should be a whole number, got True"),
        ("train.steps", 1.0, "should be a whole number, got 1.0"),
        ("train.steps", "5", "should be a whole number, got '5'"),
        ("train.steps", "1e3", "should be a whole number, got '1e3'"),
        ("train.epochs", 0, "should be at least 1, got 0"),
        ("train.batch_size", 0, "should be at least 1, got 0"),
        ("train.batch_size", float("inf"), "should be a whole number, got inf"),
        ("train.lr", "fast", "should be a number, got 'fast'"),
        ("train.lr", True, "should be a number, got True"),
        ("train.lr", 0, "should be greater than 0, got 0"),
        ("train.lr", -0.1, "should be greater than 0, got -0.1"),
        ("train.lr", float("nan"), "should be a finite number, got nan"),
        ("train.lr", float("inf"), "should be a finite number, got inf"),
        ("train.lr", "nan", "should be a finite number, got 'nan'"),
        ("train.lr", "1e400", "should be a finite number, got '1e400'"),
        ("train.seed", -1, "should be at least 0, got -1"),
        ("train.seed", False, "should be a whole number, got False"),
        ("train.accelerator", "tpu", "should be 'auto', 'cpu', 'gpu', 'cuda' or 'mps', got 'tpu'"),
        ("train.precision", "16-mixed", "should be '32-true', '64-true' or 'bf16-mixed', got '16-mixed'"),
        ("net.hidden", 0, "should be at least 1, got 0"),
        ("net.init", "zeros", "should be 'normal' or 'linear', got 'zeros'"),
        ("net.bias", "maybe", "should be true or false, got 'maybe'"),
        ("net.bias", 1, "should be true or false, got 1"),
        ("data.n", 0, "should be at least 1, got 0"),
        ("data.d_in", -3, "should be at least 1, got -3"),
        ("data.d_out", 2.5, "should be a whole number, got 2.5"),
        ("data.val_fraction", 1, "should be less than 1, got 1"),
        ("data.val_fraction", -0.1, "should be at least 0, got -0.1"),
        ("data.val_fraction", float("nan"), "should be a finite number, got nan"),
        ("data.name", 5, "should be text, got 5"),
        ("export", "yes please", "should be true or false, got 'yes please'"),
        ("experiment", 5, "should be text, got 5"),
        ("name", ["a"], "should be text"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(tmp_path: Path, key: str, value: Any, complaint: str) -> None:
    """Key, what it should be, what was given; the flag that sets it is the hint. A file says the same."""
    flag = next(name for name, dotted in FLAGS.items() if dotted == key)
    error = refused(flags={flag: value})
    expected_hint = f"set it with --{flag.replace('_', '-')}"
    assert (str(error), error.hint) == (f"{key}: {complaint}", expected_hint)
    *part, leaf = key.split(".")
    tree = {part[0]: {leaf: value}} if part else {leaf: value}
    file = written(tmp_path, yaml.safe_dump(tree))
    assert str(refused(config=file)) == f"{file}: {key}: {complaint}"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("plugins", value) for value in ([], None, 5, [""], [1])),
        *(("data.target", value) for value in (5, [""])),
        *((key, "") for key in ("name", "experiment", "data.name")),
        *((key, "x" * 201) for key in ("name", "experiment")),
        *((key, value) for key in ("net", "data", "train") for value in (5, "x", [1], None)),
    ],
)
def test_what_is_empty_or_of_the_wrong_shape_is_refused(key: str, value: Any) -> None:
    """Lists without names, names without letters, parts that are not mappings: the key is named."""
    assert str(refused(settings=[f"{key}={yaml.safe_dump(value)}"])).startswith(key)


def test_more_than_one_wrong_value_is_counted() -> None:
    """The first is shown, the others are counted."""
    error = refused(settings=["train.steps=0", "train.lr=0", "net.hidden=0"])
    assert str(error) == "net.hidden: should be at least 1, got 0 (and 2 more)"


@pytest.mark.parametrize("size", ["n", "d_in", "d_out"])
@pytest.mark.parametrize("data", ["digits", "houses.csv"])
def test_sizes_belong_to_random_data(size: str, data: str) -> None:
    """Real data has the size that it has: a size given beside it is not silently ignored."""
    message = f"data: {size} is a size of the random problem, and the data is '{data}'"
    assert str(refused(flags={"data": data, size: 5})) == message


@pytest.mark.parametrize("data", ["random", *BUNDLED])
def test_a_target_belongs_to_a_file(data: str) -> None:
    """Random and bundled data know their targets."""
    message = f"data: target names columns of a file, and the data is '{data}'"
    assert str(refused(flags={"data": data, "target": ["price"]})) == message


@pytest.mark.parametrize("key", ["experiment", "name"])
@pytest.mark.parametrize("text", ["a\nb", "a\tb", "\x1b[31mred", "a\x00", "a\N{RIGHT-TO-LEFT OVERRIDE}b"])
def test_control_characters_in_names_are_refused(key: str, text: str) -> None:
    """A name is shown in terminals and pages: only what can be printed may be in it."""
    assert str(refused(flags={key: text})) == f"{key} has a control character"


def test_names_may_be_in_any_script() -> None:
    """Letters, spaces and signs of any language are fine."""
    name = "caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{CJK UNIFIED IDEOGRAPH-4E2D}: run #1"
    assert build_spec(flags={"name": name}).name == name


def test_the_experiment_default_is_refused() -> None:
    """MLflow's own experiment keeps its artifacts where only a server may write."""
    message = "experiment 'Default' belongs to MLflow: choose another name"
    assert str(refused(flags={"experiment": "Default"})) == message


# How it is resolved.


def test_random_data_is_resolved_with_its_own_defaults() -> None:
    """500 steps on the full batch of 64 rows, no validation; the rest from the recipe."""
    spec = ExperimentSpec().resolved("nn", RECIPE, run_name="nn", n_train=64)
    assert spec.as_dict() == {
        "plugins": ["nn"],
        "net": {"hidden": 100, "init": "normal", "bias": False},
        "data": {"name": "random", "n": 64, "d_in": 1000, "d_out": 10, "val_fraction": 0.0},
        "train": {
            "steps": 500,
            "batch_size": 64,
            "lr": 0.5,
            "seed": 0,
            "accelerator": "auto",
            "precision": "32-true",
        },
        "experiment": "layerlab",
        "name": "nn",
        "export": True,
    }


@pytest.mark.parametrize("data", [{"data": "digits"}, {"data": "houses.csv", "target": ["price"]}])
@pytest.mark.parametrize(("n_train", "batch_size"), [(1438, 32), (16, 16)])
def test_real_data_is_resolved_with_its_own_defaults(
    data: dict[str, Any], n_train: int, batch_size: int
) -> None:
    """30 epochs of batches of 32, or of all the rows where there are fewer; a fifth for validation."""
    spec = build_spec(flags=data).resolved("nn", RECIPE, run_name="nn", n_train=n_train)
    assert length(spec) == (None, 30)
    assert (spec.train.batch_size, spec.data.val_fraction) == (batch_size, 0.2)
    assert (spec.data.n, spec.data.d_in, spec.data.d_out) == (None, None, None)


def test_what_was_given_is_not_replaced_by_a_default() -> None:
    """False and 0 are values, and every flag survives resolving."""
    flags = {
        **{"plugin": ["optim"], "epochs": 2, "lr": 1e-3, "batch_size": 5, "seed": 7, "accelerator": "cpu"},
        **{"precision": "64-true", "hidden": 3, "init": "linear", "bias": True, "n": 9, "d_in": 2},
        **{"d_out": 1, "val_fraction": 0.25, "experiment": "e", "name": "r", "export": False},
    }
    spec = build_spec(flags=flags)
    resolved = spec.resolved("optim", RECIPE, run_name="r", n_train=7)
    assert resolved == spec
    digits = build_spec(flags={"data": "digits", "val_fraction": 0.0, "bias": False})
    resolved = digits.resolved("nn", Recipe(bias=True), run_name="nn", n_train=10)
    assert (resolved.data.val_fraction, resolved.net.bias) == (0.0, False)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"plugin": ["numpy"], "epochs": 3, "name": "2020-01-01"},
        {"plugin": ["nn"], "data": "iris", "lr": 1e-7},
        {"data": "linnerud", "steps": 3, "name": "null", "experiment": "yes: #1"},
        {"n": 3, "val_fraction": 0.4, "seed": 2**63 - 1, "name": "\N{GREEK SMALL LETTER ALPHA} \\ 'x'"},
    ],
)
def test_a_resolved_spec_is_a_file_that_resolves_to_itself(tmp_path: Path, flags: dict[str, Any]) -> None:
    """``as_yaml`` is what ``--config`` takes, and nothing is left to be filled in."""
    (first,) = resolve(**flags)
    file = written(tmp_path, first.as_yaml())
    assert build_spec(config=file) == first
    assert resolve(config=file) == [first]


def test_a_resolved_spec_of_a_table_resolves_to_itself(empty_folder: Path) -> None:
    """The same for a file of the user's own, whose targets are kept."""
    Path("houses.csv").write_text("rooms,area,price\n" + "".join(f"{i},{i * i},{2 * i}\n" for i in range(9)))
    (first,) = resolve(data="houses.csv", target=["price"])
    file = written(empty_folder, first.as_yaml())
    assert resolve(config=file) == [first]
    assert first.data.target == ("price",)


def test_flat_keys_are_dotted_and_values_are_text() -> None:
    """MLflow's parameters: one line a value, texts as they are, the rest as JSON."""
    spec = build_spec(flags={"lr": 1e-3, "bias": False})
    flat = spec.resolved("nn", RECIPE, run_name="my run", n_train=64).flat()
    assert set(flat) == ALL_KEYS | {"train.steps", "data.n", "data.d_in", "data.d_out"}
    assert (flat["name"], flat["plugins"], flat["net.bias"]) == ("my run", '["nn"]', "false")
    assert (flat["train.lr"], flat["train.steps"], flat["data.val_fraction"]) == ("0.001", "500", "0.0")


def test_flat_keys_of_a_table_name_its_targets() -> None:
    """What was left out has no key."""
    spec = build_spec(flags={"data": "houses.csv", "target": ["price", "rent"]})
    flat = spec.resolved("nn", RECIPE, run_name="nn", n_train=64).flat()
    assert set(flat) == ALL_KEYS | {"train.epochs", "data.target"}
    assert flat["data.target"] == '["price", "rent"]'


def test_every_flag_has_a_place_in_the_spec() -> None:
    """`FLAGS` leads to fields that exist, each to one of its own, and all fields have a flag."""
    fields = {
        f"{part}.{key}" if inner else part
        for part, field in ExperimentSpec.model_fields.items()
        for inner in [getattr(field.annotation, "model_fields", {})]
        for key in inner or [part]
    }
    assert set(FLAGS.values()) == fields
    assert len(set(FLAGS.values())) == len(FLAGS)


# What ships, and what the command line shows.


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_shipped_experiments_resolve(path: Path) -> None:
    """Each file that ships is a spec of known tiers, and names the command that runs it."""
    specs = resolve(config=path)
    assert [spec.plugins[0] for spec in specs] == (["optim"] if path.stem == "digits" else BUILTINS)
    assert {spec.experiment for spec in specs} == {path.stem}
    assert f"layerlab run --config experiments/{path.name}" in path.read_text()


def test_the_promised_experiments_ship() -> None:
    """Three of them."""
    assert [path.stem for path in EXPERIMENTS] == ["digits", "equal-footing", "seven-tiers"]


def test_equal_footing_is_equal() -> None:
    """All seven tiers resolve to the same network, data and training."""
    path = next(p for p in EXPERIMENTS if p.stem == "equal-footing")
    specs = resolve(config=path)
    same = [spec.model_copy(update={"plugins": ("",), "name": ""}) for spec in specs]
    assert same == [same[0]] * 7
    assert (same[0].net.init, same[0].net.bias) == ("normal", False)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--plugin", "numpy", "--epochs", "3", "--lr", "1e-7"],
        ["--data", "iris", "--no-export", "--name", "flowers"],
        ["--config", str(EXPERIMENTS[0]), "--set", "train.lr=0.01"],
    ],
)
def test_print_config_prints_a_config(empty_folder: Path, layerlab_cli: Any, arguments: list[str]) -> None:
    """What ``--print-config`` prints is a file for ``--config`` that prints the same; nothing is written."""
    shown = layerlab_cli("run", *arguments, "--print-config")
    assert (shown.code, shown.stderr) == (0, "")
    assert list(empty_folder.iterdir()) == []
    file = written(empty_folder, shown.stdout)
    again = layerlab_cli("run", "--config", file, "--print-config")
    assert again == shown
    assert list(empty_folder.iterdir()) == [file]


def test_print_config_prints_json_where_that_is_asked_for(layerlab_cli: Any) -> None:
    """A list, an entry a tier, with what YAML has of it."""
    arguments = ("run", "--plugin", "numpy", "--plugin", "nn", "--print-config")
    listed = json.loads(layerlab_cli(*arguments, "--json").stdout)
    assert listed == list(yaml.safe_load_all(layerlab_cli(*arguments).stdout))
    assert [entry["plugins"] for entry in listed] == [["numpy"], ["nn"]]


def test_print_config_of_several_tiers_is_one_document_each(layerlab_cli: Any, tmp_path: Path) -> None:
    """Each of the documents, on its own, is a config of one tier."""
    shown = layerlab_cli("run", "--plugin", "all", "--name", "ladder", "--print-config")
    documents = list(yaml.safe_load_all(shown.stdout))
    assert [document["plugins"] for document in documents] == [[name] for name in BUILTINS]
    assert [document["name"] for document in documents] == [f"ladder-{name}" for name in BUILTINS]
    for document in documents:
        (spec,) = resolve(config=written(tmp_path, yaml.safe_dump(document)))
        assert spec.as_dict() == document
