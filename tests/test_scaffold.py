"""`layerlab plugins new`: a whole distribution, or nothing and a reason."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helpers import TINY, run_command
from layerlab.errors import PluginError
from layerlab.scaffold import NewPlugin, new_plugin

if TYPE_CHECKING:
    from helpers import Site

FILES = {
    "README.md",
    ".gitignore",
    "pyproject.toml",
    "src/layerlab_my_tier/__init__.py",
    "tests/test_my_tier.py",
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[NewPlugin, dict[str, str]]:
    """A new plugin, its wheel installed into a clean folder, and the environment that sees it."""
    home = tmp_path_factory.mktemp("scaffold")
    made = new_plugin("my-tier", home)
    pip = [sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check"]
    local = ["--no-deps", "--no-index"]
    subprocess.run(
        [*pip, "wheel", *local, "--no-build-isolation", "-w", str(home), str(made.path)], check=True
    )
    (wheel,) = home.glob("*.whl")
    subprocess.run([*pip, "install", *local, "--target", str(home / "site"), str(wheel)], check=True)
    return made, {"PYTHONPATH": str(home / "site"), "LAYERLAB_PLUGINS": made.distribution}


def test_a_distribution_is_made(empty_folder: Path, layerlab_cli: Any) -> None:
    """Five files, an entry point, the version that made it, and the commands to type next."""
    result = layerlab_cli("plugins", "new", "my-tier")
    assert (result.code, result.stderr) == (0, "")
    made = empty_folder / "layerlab-my-tier"
    assert {str(p.relative_to(made)) for p in made.rglob("*") if p.is_file()} == FILES
    assert [p.name for p in empty_folder.iterdir()] == ["layerlab-my-tier"]
    project = tomllib.loads((made / "pyproject.toml").read_text())
    assert project["project"]["entry-points"] == {"layerlab.tiers": {"my-tier": "layerlab_my_tier:MyTier"}}
    assert project["tool"]["layerlab"]["made-by"] == f"layerlab {version('layerlab')}"
    assert result.stdout.splitlines()[-3:] == [
        "  pip install -e ./layerlab-my-tier",
        "  layerlab check my-tier",
        "  layerlab run --plugin my-tier",
    ]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(made.stat().st_mode) == 0o777 & ~umask


def test_the_class_is_about_twenty_lines(tmp_path: Path) -> None:
    """A first tier can be read at a glance."""
    made = new_plugin("my-tier", tmp_path)
    code = (made.path / "src/layerlab_my_tier/__init__.py").read_text().partition("class ")[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 24


def test_as_json_in_another_folder(empty_folder: Path, layerlab_cli: Any) -> None:
    """What was made, for programs."""
    (empty_folder / "there").mkdir()
    result = layerlab_cli("plugins", "new", "fast2", "--directory", "there", "--json")
    made = json.loads(result.stdout)
    assert (made["name"], made["distribution"], made["path"]) == (
        "fast2",
        "layerlab-fast2",
        "there/layerlab-fast2",
    )
    assert all((empty_folder / made["path"] / file).is_file() for file in made["files"])


@pytest.mark.parametrize(
    ("name", "class_name"),
    [("my-tier", "MyTier"), ("fast", "FastTier"), ("tier", "TierTier"), ("a-b2", "AB2Tier")],
)
def test_the_class_is_named_after_the_tier(tmp_path: Path, name: str, class_name: str) -> None:
    """And never like the class that it derives from."""
    made = new_plugin(name, tmp_path)
    (code,) = (made.path / "src").glob("*/__init__.py")
    assert f"class {class_name}(Tier):" in code.read_text()
    compile(code.read_text(), str(code), "exec")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        *(
            (name, "cannot be the name")
            for name in ("", "My", "a--b", "a-", "1a", "a_b", "../a", "a b", "a\nb", "ä")
        ),
        ("x" * 51, "cannot be the name"),
        ("all", "stands for the built-in tiers"),
        ("nn", "tier 'nn' exists already: layerlab"),
    ],
)
def test_names_that_cannot_be(empty_folder: Path, layerlab_cli: Any, name: str, said: str) -> None:
    """One line and a hint, exit 2, nothing written."""
    result = layerlab_cli("plugins", "new", "--", name)
    assert (result.code, result.stdout) == (2, "")
    error, hint = result.stderr.splitlines()
    assert said in error
    assert hint.startswith("hint: ")
    assert not list(empty_folder.iterdir())


def test_a_name_that_a_plugin_has(site: Site, empty_folder: Path) -> None:
    """Other people's tiers count."""
    site.add("a-dist", {"taken": "MODULE:Good"})
    site.allow("a-dist")
    with pytest.raises(PluginError, match=r"tier 'taken' exists already: a-dist 1\.0"):
        new_plugin("taken")


@pytest.mark.parametrize("kind", ["folder", "file", "broken link"])
def test_nothing_is_overwritten(empty_folder: Path, layerlab_cli: Any, kind: str) -> None:
    """Not a folder, empty as it may be, not a file, not a link to nowhere."""
    target = empty_folder / "layerlab-mine"
    {"folder": target.mkdir, "file": target.touch, "broken link": lambda: target.symlink_to("nowhere")}[
        kind
    ]()
    result = layerlab_cli("plugins", "new", "mine")
    assert (result.code, result.stdout) == (2, "")
    assert "layerlab-mine is there already" in result.stderr
    assert [p.name for p in empty_folder.iterdir()] == ["layerlab-mine"]


@pytest.mark.parametrize(
    ("directory", "said"),
    [
        ("no", "there is no such folder"),
        ("/proc", "cannot be written"),
        pytest.param("a" * 300, "cannot be written: File name too long", id="too long"),
    ],
)
def test_folders_that_cannot_be_written(
    empty_folder: Path, layerlab_cli: Any, directory: str, said: str
) -> None:
    """One line and a hint, and nothing half written."""
    result = layerlab_cli("plugins", "new", "mine", "--directory", directory)
    assert (result.code, result.stdout) == (2, "")
    error, hint = result.stderr.splitlines()
    assert said in error
    assert hint.startswith("hint: ")
    assert not list(empty_folder.iterdir())


def test_a_failure_in_the_middle_leaves_nothing(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody makes the folder while its files are written: it stays theirs, and nothing else is there."""
    write = Path.write_text

    def meddled(path: Path, *args: Any, **kwargs: Any) -> int:
        theirs = empty_folder / "layerlab-mine"
        theirs.mkdir(exist_ok=True)
        (theirs / "thesis.tex").touch()
        return write(path, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", meddled)
    with pytest.raises(PluginError, match="cannot be written"):
        new_plugin("mine")
    assert [p.name for p in empty_folder.rglob("*")] == ["layerlab-mine", "thesis.tex"]


@pytest.mark.slow
def test_its_wheel_is_listed_and_trains(installed: tuple[NewPlugin, dict[str, str]], folder: Path) -> None:
    """As it was made, the tier is found, loads, declares its contract, and trains to a model."""
    made, env = installed
    listed = run_command("plugins", "--check", "--json", cwd=folder, env=env)
    (row,) = [row for row in json.loads(listed.stdout) if row["distribution"] == made.distribution]
    assert (row["name"], row["status"]) == (made.name, "ok")
    sizes = [word for key, value in TINY.items() for word in (f"--{key.replace('_', '-')}", value)]
    ran = run_command("run", "--plugin", made.name, *sizes, "--json", cwd=folder, env=env)
    assert ran.code == 0, ran.stderr
    (run,) = json.loads(ran.stdout)["runs"]
    assert (run["status"], run["distribution"]) == ("FINISHED", made.distribution)
    assert (folder / run["onnx"]["path"]).is_file()
