"""Tiers by name: listed without being run, chosen without doubt, and broken without a crash."""

from __future__ import annotations

import json
import py_compile
from pathlib import Path
from typing import Any

import pytest

from helpers import BUILTINS, TIERS, Site, run_command
from layerlab import registry
from layerlab.errors import PluginError

ROW = {"name", "selector", "distribution", "version", "summary", "target"}


def names() -> list[str]:
    return [row.name for row in registry.rows()]


# The built-ins.


def test_the_built_in_tiers_are_listed_in_the_order_of_the_ladder() -> None:
    """Seven, from most to least by hand, all of the distribution `layerlab`."""
    rows = registry.rows()
    assert [row.name for row in rows] == BUILTINS == registry.builtin_names()
    assert {row.distribution for row in rows} == {"layerlab"}
    assert all(row.builtin for row in rows)
    assert [row.selector for row in rows] == BUILTINS


def test_summaries_tell_the_tiers_apart() -> None:
    """Each built-in tier has a sentence of its own."""
    summaries = [row.summary for row in registry.rows()]
    assert len(set(summaries)) == 7
    assert all(summary.endswith(".") and len(summary) > 20 for summary in summaries)


def test_plugins_prints_a_table(layerlab_cli: Any) -> None:
    """One line a tier below a header: name, distribution, version, summary."""
    result = layerlab_cli("plugins")
    header, *lines = result.stdout.splitlines()
    assert (result.code, result.stderr) == (0, "")
    assert header.split() == ["tier", "distribution", "version", "summary"]
    assert [line.split()[0] for line in lines] == BUILTINS
    for line, row in zip(lines, registry.rows(), strict=True):
        assert line.split(maxsplit=3)[1:] == ["layerlab", row.version, row.summary]


def test_plugins_prints_json(layerlab_cli: Any) -> None:
    """``--json`` prints the same facts and the place of the class, and nothing else on stdout."""
    result = layerlab_cli("plugins", "--json")
    entries = json.loads(result.stdout)
    assert (result.code, result.stderr) == (0, "")
    assert [entry["name"] for entry in entries] == BUILTINS
    assert all(set(entry) == ROW for entry in entries)
    assert entries[4]["target"] == "layerlab.tiers.nn:NnTier"
    assert entries == [row.as_dict() for row in registry.rows()]


def test_plugins_check_loads_each(layerlab_cli: Any) -> None:
    """``--check`` adds accelerators, recipe and status."""
    result = layerlab_cli("plugins", "--check")
    header, *lines = result.stdout.splitlines()
    assert result.code == 0
    assert header.split() == [
        "tier",
        "distribution",
        "version",
        "contract",
        "accelerators",
        "recipe",
        "status",
    ]
    assert [line.split()[0] for line in lines] == BUILTINS
    assert [line.split()[-1] for line in lines] == ["ok"] * 7
    assert "cpu  " in lines[0]
    assert all("cpu, gpu  " in line for line in lines[1:])


def test_plugins_check_prints_json(layerlab_cli: Any) -> None:
    """``--check --json`` has what ``--json`` has, and what loading tells."""
    entries = json.loads(layerlab_cli("plugins", "--check", "--json").stdout)
    assert all(set(entry) == ROW | {"contract", "accelerators", "recipe", "status"} for entry in entries)
    assert {entry["status"] for entry in entries} == {"ok"}
    assert entries[0]["accelerators"] == ["cpu"]
    recipes = {entry["name"]: entry["recipe"] for entry in entries}
    by_hand = {"optimizer": "sgd", "lr": 1e-6, "init": "normal", "bias": False}
    assert recipes["numpy"] == recipes["custom-function"] == by_hand
    assert recipes["optim"] == {"optimizer": "adam", "lr": 1e-4, "init": "linear", "bias": True}


@pytest.mark.parametrize("name", BUILTINS)
def test_show_prints_documentation_recipe_and_source(layerlab_cli: Any, name: str) -> None:
    """All that there is to know of a tier, its file included, as text and as JSON."""
    text = layerlab_cli("plugins", "show", name)
    details = json.loads(layerlab_cli("plugins", "show", name, "--json").stdout)
    file = Path(registry.__file__).parent / "tiers" / f"{name.replace('-', '_')}.py"
    assert (text.code, text.stderr) == (0, "")
    assert details["source"] == file.read_text()
    assert details["documentation"].startswith(registry.find(name).summary)
    assert set(details["recipe"]) == {"optimizer", "lr", "init", "bias"}
    assert details["precisions"] == sorted(
        {"32-true", "64-true"} | ({"bf16-mixed"} if name != "numpy" else set())
    )
    assert (details["splits_step"], details["resumable"]) == (True, True)
    assert details["documentation"] in text.stdout
    assert text.stdout.endswith(f"{details['source']}\n")
    recipe = ", ".join(f"{key} {value}" for key, value in details["recipe"].items())
    assert f"{'recipe:':18}{recipe}" in text.stdout.splitlines()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("numyp", "did you mean 'numpy'?"),
        ("custom-modul", "did you mean 'custom-module'?"),
        ("zzz", f"there are: {', '.join(sorted(BUILTINS))}"),
        ("other:nn", f"there are: {', '.join(sorted(BUILTINS))}"),
    ],
)
@pytest.mark.parametrize("command", [("run", "--plugin"), ("plugins", "show")])
def test_an_unknown_tier_is_named_with_the_closest_one(
    empty_folder: Path, layerlab_cli: Any, command: tuple[str, ...], name: str, hint: str
) -> None:
    """Exit code 2, one line and a hint."""
    result = layerlab_cli(*command, name)
    assert (result.code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [f"error: no tier is called '{name}'", f"hint: {hint}"]
    assert list(empty_folder.iterdir()) == []


def test_a_tier_can_be_named_with_its_distribution() -> None:
    """``layerlab:nn`` is ``nn``; distributions are compared as packaging compares them."""
    assert registry.find("layerlab:nn") == registry.find("LayerLab:nn") == registry.find("nn")


def test_a_tier_named_twice_is_selected_once() -> None:
    """And ``all`` stands for the built-ins in their order."""
    assert [row.name for row in registry.select(["nn", "optim", "nn", "layerlab:nn"])] == ["nn", "optim"]
    assert [row.name for row in registry.select(["all", "nn"])] == BUILTINS
    assert [row.name for row in registry.select(["nn", "all"])] == ["nn", *(n for n in BUILTINS if n != "nn")]


# Which plugins are allowed.


def test_without_the_variable_every_plugin_is_allowed(site: Site) -> None:
    """``LAYERLAB_PLUGINS`` unset: whatever is installed is listed, after the built-ins, by name."""
    site.add("b-dist", {"beta": "MODULE:Good", "alpha": "MODULE:Good"})
    site.add("a-dist", {"gamma": "MODULE:Good"})
    site.patch.delenv("LAYERLAB_PLUGINS")
    others = [name for name in names() if name in {"alpha", "beta", "gamma"}]
    assert names()[:7] == BUILTINS
    assert others == ["alpha", "beta", "gamma"]


@pytest.mark.parametrize("value", ["", " ", ",", " , "])
def test_an_empty_variable_allows_none(site: Site, value: str) -> None:
    """Set to nothing it leaves the built-ins."""
    site.add("a-dist", {"alpha": "MODULE:Good"})
    site.patch.setenv("LAYERLAB_PLUGINS", value)
    assert names() == BUILTINS
    with pytest.raises(PluginError, match="no tier is called 'alpha'") as refusal:
        registry.find("alpha")
    assert refusal.value.hint == "it is installed, and LAYERLAB_PLUGINS leaves it out"


@pytest.mark.parametrize("value", ["a-dist", "A_Dist", " a.dist , missing-dist", "layerlab,a-dist"])
def test_a_list_allows_those_distributions(site: Site, value: str) -> None:
    """Names are compared as packaging compares them; one that is not installed allows nothing."""
    site.add("a-dist", {"alpha": "MODULE:Good"})
    site.add("b-dist", {"beta": "MODULE:Good"})
    site.patch.setenv("LAYERLAB_PLUGINS", value)
    assert names() == [*BUILTINS, "alpha"]
    with pytest.raises(PluginError, match="no tier is called 'beta'"):
        registry.find("beta")


def test_a_plugin_is_a_row_like_the_others(site: Site, layerlab_cli: Any) -> None:
    """Its distribution's version and summary are shown, and ``show`` prints its file."""
    module = site.add("a-dist", {"alpha": "MODULE:Good"})
    site.allow("a-dist")
    last = json.loads(layerlab_cli("plugins", "--json").stdout)[-1]
    assert last == {
        **{"name": "alpha", "selector": "alpha", "distribution": "a-dist", "version": "1.0"},
        **{"summary": "Of a-dist.", "target": f"{module}:Good"},
    }
    details = json.loads(layerlab_cli("plugins", "show", "alpha", "--json").stdout)
    assert details["source"] == TIERS
    assert details["documentation"] == "A tier of a third party.\n\nTrains by autograd."
    assert (details["splits_step"], details["resumable"]) == (False, False)
    assert details["recipe"]["bias"] is False


def test_listing_runs_no_code_of_a_plugin(site: Site, tmp_path: Path, layerlab_cli: Any) -> None:
    """A module that writes a file when it is imported does not run on ``plugins``; on ``--check`` it does."""
    trace = tmp_path / "trace"
    site.add("a-traced-dist", {"traced": "MODULE:Good"}, f"open({str(trace)!r}, 'w').close()\n{TIERS}")
    site.allow("a-traced-dist")
    for arguments in [("plugins",), ("plugins", "--json"), ("run", "--plugin", "trace"), ("run", "--help")]:
        layerlab_cli(*arguments)
        assert not trace.exists(), arguments
    assert layerlab_cli("plugins").stdout.splitlines()[-1].split()[0] == "traced"
    layerlab_cli("plugins", "--check")
    assert trace.exists()


def test_choosing_a_tier_runs_no_code_of_another_plugin(
    site: Site, tmp_path: Path, layerlab_cli: Any
) -> None:
    """Only what is chosen is loaded."""
    trace = tmp_path / "trace"
    site.add("a-bystander", {"bystander": "MODULE:Good"}, f"open({str(trace)!r}, 'w').close()\n{TIERS}")
    site.add("a-chosen-dist", {"chosen": "MODULE:Good"})
    site.allow("a-bystander", "a-chosen-dist")
    assert layerlab_cli("run", "--plugin", "chosen", "--plugin", "nn", "--print-config").code == 0
    assert not trace.exists()


def test_a_summary_cannot_draw_on_the_terminal(site: Site, layerlab_cli: Any) -> None:
    """Metadata is others' text: control characters in it are not printed."""
    head = "Metadata-Version: 2.1\nName: a-dist\nVersion: 1.0\n"
    site.add("a-dist", {"alpha": "MODULE:Good"}, metadata=f"{head}Summary: \x1b[31mred\x07\n")
    site.allow("a-dist")
    shown = layerlab_cli("plugins").stdout
    assert len(shown.splitlines()) == 9
    assert {c for c in shown if not c.isprintable()} == {"\n"}


@pytest.mark.parametrize("allowed", [None, "", "a-dist"])
def test_a_distribution_without_metadata_hides_no_other(
    site: Site, layerlab_cli: Any, allowed: str | None
) -> None:
    """An uninstall that was broken off leaves such folders: every command must go on."""
    site.add("a-leftover", {"leftover": "MODULE:Good"}, metadata="")
    site.add("a-dist", {"alpha": "MODULE:Good"})
    if allowed is None:
        site.patch.delenv("LAYERLAB_PLUGINS")
    else:
        site.patch.setenv("LAYERLAB_PLUGINS", allowed)
    result = layerlab_cli("plugins")
    listed = [line.split()[0] for line in result.stdout.splitlines()[1:]]
    assert result.code == 0
    assert listed[:7] == BUILTINS
    assert ("alpha" in listed) == (allowed != "")


# Two of one name.


@pytest.fixture
def clash(site: Site) -> Site:
    """Two distributions that offer ``same``, one of them also ``nn``."""
    site.add("first-dist", {"same": "MODULE:Good", "nn": "MODULE:Good"})
    site.add("second-dist", {"same": "MODULE:Good"})
    site.allow("first-dist", "second-dist")
    return site


def test_a_clash_names_both(clash: Site, empty_folder: Path, layerlab_cli: Any) -> None:
    """One line says who offers the name, the hint how to say which; nothing is written."""
    result = layerlab_cli("run", "--plugin", "same")
    assert (result.code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "error: 'same' is offered by first-dist 1.0 and second-dist 1.0",
        "hint: say which: first-dist:same or second-dist:same",
    ]
    assert list(empty_folder.iterdir()) == []


def test_a_distribution_decides_a_clash(clash: Site) -> None:
    """``distribution:name`` selects one, and the listing shows that as its name."""
    first, second = (registry.find(f"{which}-dist:same") for which in ("first", "second"))
    assert (first.distribution, second.distribution) == ("first-dist", "second-dist")
    assert registry.find("First_Dist:same") == first
    assert first.target != second.target
    selectors = [row.selector for row in registry.rows()]
    assert selectors == [*BUILTINS, "first-dist:nn", "first-dist:same", "second-dist:same"]
    assert [registry.find(selector).selector for selector in selectors] == selectors


def test_both_of_a_clash_can_run_side_by_side(clash: Site, folder: Path, layerlab_cli: Any) -> None:
    """Two tiers of one name are two runs, told apart by their distribution."""
    chosen = ("--plugin", "first-dist:same", "--plugin", "second-dist:same")
    result = layerlab_cli("run", *chosen, "--steps", 2, "--n", 4, "--d-in", 3, "--json")
    runs = json.loads(result.stdout)["runs"]
    assert [(r["tier"], r["distribution"], r["status"]) for r in runs] == [
        ("same", "first-dist", "FINISHED"),
        ("same", "second-dist", "FINISHED"),
    ]
    assert runs[0]["final_loss"] == runs[1]["final_loss"]
    assert len({r["onnx"]["path"] for r in runs}) == 2


def test_a_built_in_tier_wins_over_a_third_partys(clash: Site) -> None:
    """Nobody can take the name of a built-in tier; the other one is there under its full name."""
    assert registry.find("nn").distribution == "layerlab"
    assert registry.find("first-dist:nn").distribution == "first-dist"
    assert [row.distribution for row in registry.select(["all"])] == ["layerlab"] * 7


# Those written for another contract.


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ("2", "written for contract 2, newer than 1, which this layerlab has (upgrade layerlab)"),
        ("0", "written for contract 0, older than 1, which this layerlab has (upgrade the plugin)"),
        ("'one'", "its contract_version is 'one', not a whole number (this one is 1)"),
    ],
    ids=["newer", "older", "no number"],
)
def test_a_plugin_for_another_contract_is_told_so(
    site: Site, empty_folder: Path, layerlab_cli: Any, declared: str, said: str
) -> None:
    """``--check`` says which side to upgrade, and `run` and `check` refuse with exit code 2."""
    code = TIERS.replace("contract_version = 1", f"contract_version = {declared}")
    site.add("a-timely-dist", {"timely": "MODULE:Good"}, code)
    site.allow("a-timely-dist")
    result = layerlab_cli("plugins", "--check")
    assert result.code == 0
    assert result.stdout.splitlines()[-1].endswith(f"broken: tier 'timely' of a-timely-dist 1.0: {said}")
    for command in (("run", "--plugin"), ("check",)):
        refused = layerlab_cli(*command, "timely")
        assert (refused.code, refused.stdout) == (2, "")
        message, _, hint = said.partition(" (")
        assert message in refused.stderr
        assert f"hint: {hint.removesuffix(')')}" in refused.stderr
    assert not list(empty_folder.iterdir())


def test_a_plugin_that_declares_no_contract_is_told_so(site: Site, layerlab_cli: Any) -> None:
    """It is loaded all the same; the conformance kit asks for the declaration."""
    site.add("a-silent-dist", {"silent": "MODULE:Good"}, TIERS.replace("contract_version = 1", ""))
    site.allow("a-silent-dist")
    listed = layerlab_cli("plugins", "--check").stdout.splitlines()[-1]
    assert listed.endswith("ok, but declares no contract_version")
    checked = layerlab_cli("check", "silent", "--only", "contract-is-declared")
    assert checked.code == 1
    assert "it should say contract_version = 1" in checked.stdout


# Broken ones.

BROKEN = {
    "raises at import": ("raise RuntimeError('no GPU\\nhere')", "MODULE:Good", "RuntimeError: no GPU here"),
    "exits at import": ("raise SystemExit(3)", "MODULE:Good", "SystemExit: 3"),
    "does not parse": ("def", "MODULE:Good", "SyntaxError"),
    "module is missing": (TIERS, "no_such_module_anywhere:Good", "ModuleNotFoundError"),
    "class is missing": (TIERS, "MODULE:Missing", "AttributeError"),
    "is a module": (TIERS, "MODULE", "is not a subclass of layerlab.Tier"),
    "is not a class": (TIERS, "MODULE:not_a_class", "is not a subclass of layerlab.Tier"),
    "is not a Tier": (TIERS, "MODULE:NotATier", "is not a subclass of layerlab.Tier"),
    "methods are missing": (TIERS, "MODULE:Empty", "Empty does not define __init__, forward, params"),
    "recipe is missing": (TIERS, "MODULE:Plain", "Plain.recipe is not a Recipe"),
    "recipe is a dict": (TIERS, "MODULE:DictRecipe", "DictRecipe.recipe is not a Recipe"),
    "recipe has an unknown init": (TIERS, "MODULE:UnknownInit", "UnknownInit.recipe"),
    "recipe has a number for bias": (
        TIERS,
        "MODULE:NumberForBias",
        "NumberForBias.recipe.bias is 1",
    ),
    "recipe has no rate": (TIERS, "MODULE:NanRate", "NanRate.recipe"),
    "recipe has a truth for a rate": (TIERS, "MODULE:TrueRate", "TrueRate.recipe.lr is True"),
    "optimizer in capitals": (
        TIERS,
        "MODULE:ShoutedOptimizer",
        "recipe.optimizer is 'SGD', not a name in lower",
    ),
    "load_state is missing": (TIERS, "MODULE:StateOnly", "StateOnly defines state and not load_state"),
    "step is missing": (TIERS, "MODULE:OnlyBackward", "neither step nor both of backward and update"),
    "unknown accelerator": (TIERS, "MODULE:Quantum", "Quantum.accelerators must be some of 'cpu' and 'gpu'"),
    "accelerators is a list": (TIERS, "MODULE:ListOfAccelerators", "ListOfAccelerators.accelerators must be"),
    "precisions is text": (TIERS, "MODULE:TextOfPrecisions", "TextOfPrecisions.precisions must be"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_plugin_is_a_row(site: Site, layerlab_cli: Any, fault: str) -> None:
    """``--check`` tells what is broken and why, in one line, and goes on to the others; as JSON too."""
    code, target, reason = BROKEN[fault]
    distribution = f"broken-{fault.replace(' ', '-')}".lower()
    site.add(distribution, {"broken": target}, code)
    site.add("a-whole-dist", {"whole": "MODULE:Good"})
    site.allow(distribution, "a-whole-dist")
    result = layerlab_cli("plugins", "--check")
    lines = result.stdout.splitlines()
    assert (result.code, len(lines)) == (0, 10)
    assert lines[-2].split()[:3] == ["broken", distribution, "1.0"]
    assert f"broken: tier 'broken' of {distribution} 1.0" in lines[-2]
    assert reason in lines[-2]
    assert lines[-1].split()[-1] == "ok"
    entries = json.loads(layerlab_cli("plugins", "--check", "--json").stdout)
    assert [entry["status"].partition(":")[0] for entry in entries] == ["ok"] * 7 + ["broken", "ok"]
    assert reason in entries[-2]["status"]


@pytest.mark.parametrize("command", [("run", "--plugin"), ("plugins", "show")])
@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_plugin_cannot_be_chosen(
    site: Site, empty_folder: Path, layerlab_cli: Any, fault: str, command: tuple[str, ...]
) -> None:
    """Tier, distribution, version and reason in one line, exit code 2, and nothing is written."""
    code, target, reason = BROKEN[fault]
    distribution = f"broken-{command[0]}-{fault.replace(' ', '-')}".lower()
    site.add(distribution, {"broken": target}, code)
    site.allow(distribution)
    result = layerlab_cli(*command, "broken")
    first, *rest = result.stderr.splitlines()
    assert (result.code, result.stdout) == (2, "")
    assert first.startswith(f"error: tier 'broken' of {distribution} 1.0")
    assert reason in first
    assert [line.partition(":")[0] for line in rest] in ([], ["hint"])
    assert list(empty_folder.iterdir()) == []


def test_one_broken_tier_of_several_stops_all_before_anything_is_written(
    site: Site, empty_folder: Path, layerlab_cli: Any
) -> None:
    """It is known before the first run that the last cannot be."""
    site.add("broken-last", {"broken": "MODULE:Empty"})
    site.allow("broken-last")
    result = layerlab_cli("run", "--plugin", "nn", "--plugin", "broken", "--steps", 2)
    assert (result.code, result.stdout) == (2, "")
    assert list(empty_folder.iterdir()) == []


def test_a_plugin_without_source_works(site: Site, empty_folder: Path, layerlab_cli: Any) -> None:
    """A compiled module has no source to show, and is no less a tier for that."""
    module = site.add("a-compiled-dist", {"compiled": "MODULE:Good"})
    source = site.path / f"{module}.py"
    py_compile.compile(str(source), cfile=str(source.with_suffix(".pyc")), doraise=True)
    source.unlink()
    site.allow("a-compiled-dist")
    assert layerlab_cli("plugins", "--check").stdout.splitlines()[-1].split()[-1] == "ok"
    shown = layerlab_cli("plugins", "show", "compiled")
    assert shown.code == 0
    assert "A tier of a third party." in shown.stdout
    assert layerlab_cli("run", "--plugin", "compiled", "--print-config").code == 0


def test_a_plugin_that_talks_at_import_does_not_spoil_json(
    site: Site, empty_folder: Path, layerlab_cli: Any
) -> None:
    """``--json`` prints JSON and nothing else on stdout, whatever a plugin prints."""
    site.add("a-talking-dist", {"talking": "MODULE:Good"}, f"print('hello from a plugin')\n{TIERS}")
    site.allow("a-talking-dist")
    result = layerlab_cli("plugins", "--check", "--json")
    assert json.loads(result.stdout)[-1]["status"] == "ok"


def test_an_installed_plugin_is_found_by_a_fresh_process(site: Site, empty_folder: Path) -> None:
    """The same from outside: a process with the folder on its path lists and shows the tier."""
    site.add("a-dist", {"alpha": "MODULE:Good"})
    env = {"PYTHONPATH": str(site.path), "LAYERLAB_PLUGINS": "a-dist"}
    result = run_command("plugins", "--json", cwd=empty_folder, env=env)
    assert [row["name"] for row in json.loads(result.stdout)] == [*BUILTINS, "alpha"]
