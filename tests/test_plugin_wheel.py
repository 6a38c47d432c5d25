"""A third party's wheel just works: built, installed into a clean folder, found by another process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import run_command, run_python

# what is built once is built in one process
pytestmark = pytest.mark.xdist_group("wheel")

SOURCE = Path(__file__).parents[1] / "plugins" / "layerlab-fused"


@pytest.fixture(scope="module", params=[pytest.param("compiler", marks=pytest.mark.slow), "no-compiler"])
def site(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder into which the wheel of the plugin is installed, and nothing else."""
    home = tmp_path_factory.mktemp(request.param)
    made = shutil.ignore_patterns("__pycache__", "*.so", "build", "*.egg-info")
    shutil.copytree(SOURCE, home / "source", ignore=made)
    env = {**os.environ, "CC": "false"} if request.param == "no-compiler" else None
    pip = [sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check"]
    local = ["--no-deps", "--no-index"]
    build = [*pip, "wheel", *local, "--no-build-isolation", "-w", str(home), str(home / "source")]
    subprocess.run(build, check=True, env=env)
    (wheel,) = home.glob("*.whl")
    subprocess.run([*pip, "install", *local, "--target", str(home / "site"), str(wheel)], check=True)
    return home / "site"


def knows_openmp() -> bool:
    """Whether the plugin's C can be compiled here."""
    build = ["cc", "-fopenmp", "-x", "c", "-", "-o", os.devnull]
    try:
        return subprocess.run(build, input=b"int main(void) { return 0; }", check=False).returncode == 0
    except FileNotFoundError:
        return False


def test_the_tier_is_there_without_a_change_to_layerlab(site: Path, folder: Path) -> None:
    """One process lists it from the clean folder, trains it, records it and exports it; compiled or not."""
    env = {"PYTHONPATH": str(site), "LAYERLAB_PLUGINS": "layerlab-fused"}
    code = """
import json, layerlab, layerlab_fused
from layerlab import registry
row = registry.find("fused")
run = layerlab.run(plugin="fused", steps=20, n=8, d_in=5, hidden=4).runs[0]
compiled = layerlab_fused.CompiledStep is not None
file = layerlab_fused.__file__
print(json.dumps([file, compiled, row.as_dict(), run.status, run.distribution, run.onnx["path"]]))
"""
    result = run_python(code, cwd=folder, env=env)
    assert result.code == 0, result.stderr
    file, compiled, row, status, distribution, model = json.loads(result.stdout)
    assert compiled == ("no-compiler" not in site.parent.name and knows_openmp())
    assert Path(file).is_relative_to(site)
    assert (row["name"], row["distribution"], row["version"]) == ("fused", "layerlab-fused", "0.1.0")
    assert row["summary"].startswith("A tier for layerlab")
    assert (status, distribution) == ("FINISHED", "layerlab-fused")
    assert (folder / model).is_file()


@pytest.mark.parametrize(("allowed", "there"), [("", False), ("layerlab_fused", True), ("other", False)])
def test_only_what_is_allowed_is_listed(site: Path, folder: Path, allowed: str, there: bool) -> None:
    """``LAYERLAB_PLUGINS`` names distributions, in whatever spelling; the others are not there."""
    env = {"PYTHONPATH": str(site), "LAYERLAB_PLUGINS": allowed}
    rows: list[dict[str, Any]] = json.loads(run_command("plugins", "--json", cwd=folder, env=env).stdout)
    assert ("fused" in [row["name"] for row in rows]) == there
