"""What the documentation says is run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import layerlab
from helpers import run_command

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("layerlab run")]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_readme_are_understood(folder: Path, layerlab_cli: Any, command: str) -> None:
    """Every ``layerlab run`` of the README resolves to specs: flags, files and keys are right."""
    (folder / "experiments").symlink_to(ROOT / "experiments")
    (folder / "houses.csv").write_text("rooms,area,price\n3,70,200\n4,90,260\n2,50,150\n5,120,330\n")
    import torch

    words = shlex.split(command)[1:]
    if "gpu" in words and not torch.cuda.is_available():
        words[words.index("gpu")] = "auto"
    result = layerlab_cli(*(word for word in words if word != "--print-config"), "--print-config")
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.startswith("plugins:")


def test_the_readme_plugin_installs_and_trains(folder: Path, tmp_path: Path) -> None:
    """The twenty lines and the pyproject of the README make a tier that trains, records and exports."""
    code = next(block for block in blocks("python") if "class MyTier" in block)
    project = blocks("toml")[0]
    assert len([line for line in code.splitlines() if line]) <= 20
    source, site = tmp_path / "mine", tmp_path / "site"
    source.mkdir()
    (source / "layerlab_mine.py").write_text(code)
    (source / "pyproject.toml").write_text(project)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True, capture_output=True)
    env = {"PYTHONPATH": str(site), "LAYERLAB_PLUGINS": "layerlab-mine"}
    result = run_command("run", "--plugin", "mine", "--plugin", "nn", "--no-bias", cwd=folder, env=env)
    assert result.code == 0, result.stderr
    mine, nn = (line.split() for line in result.stdout.splitlines()[1:3])
    assert mine[:4] == ["mine", "FINISHED", nn[2], "500"]
    assert mine[4] == nn[4], "the same first loss as nn"
    assert len(list((folder / "models").glob("mine-*.onnx"))) == 1


def test_the_readme_python_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The Python of the README runs as it stands, and prints a loss and the outcome of a check."""
    exec(next(block for block in blocks("python") if "layerlab.run(" in block), {})
    loss, ok = capsys.readouterr().out.split()
    assert float(loss) < 1e-3
    assert ok == "True"


def test_links_lead_somewhere() -> None:
    """Every relative link of every page leads to a file."""
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("plugins/*/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_table_names_every_tier() -> None:
    """The ladder of the README is the ladder of the package, in its order."""
    from layerlab.registry import builtin_names

    ladder = README.partition("## The ladder")[2].partition("\n## ")[0]
    assert re.findall(r"^\| \[`([^`]+)`\]", ladder, flags=re.MULTILINE) == builtin_names()


def test_constraints_pin_what_the_metadata_asks_for() -> None:
    """Every dependency has an exact version in the constraints, and torch is among them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.match(r"[\w.-]+", entry)[0].lower() for entry in wanted}
    pinned = dict(
        line.lower().split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    assert names - set(pinned) == set()
    assert pinned["torch"] == "2.13.0"


def test_everything_public_is_documented() -> None:
    """Every public name has a docstring of its own."""
    assert [name for name in layerlab.__all__ if not getattr(layerlab, name).__doc__] == []
