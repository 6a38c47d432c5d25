"""The tutorial is run as it stands, from the first command to the last, in an environment of its own."""

from __future__ import annotations

import os
import re
import site
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parents[1] / "docs" / "plugin-tutorial.md"
# A fence with its language and text, and the line before it that may name a file.
BLOCK = re.compile(r"(?:^`([^`\n]+)`[^\n]*:\n\n)?^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def environment(home: Path) -> dict[str, str]:
    """A fresh virtual environment that sees what is installed in this one, and installs into itself."""
    venv = home / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    ours = next(path for path in site.getsitepackages() if path.endswith("site-packages"))
    (packages / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    commands = {
        "layerlab": "-m layerlab",
        "pytest": "-m pytest -p no:cacheprovider",
        "mlflow": "-m mlflow",
        # what a build needs is installed here: nothing is fetched
        "pip": "-m pip --disable-pip-version-check",
    }
    for name, arguments in commands.items():
        script = venv / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {venv}/bin/python {arguments} "$@"\n')
        script.chmod(0o755)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "LAYERLAB"))}
    return {
        **clean,
        "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
        "LAYERLAB_PLUGINS": "layerlab-my-tier",
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
    }


def assert_shown(promised: str, seen: str) -> None:
    """Every line of the page is a line of the output: its parts, two spaces apart, in their order."""
    lines = seen.splitlines()
    for line in promised.splitlines():
        parts = r".*\s.*?".join(re.escape(part) for part in re.split(r"\s{2,}", line.strip()))
        pattern = re.compile(rf"(^|.*[\s,]){parts}($|[\s\[;,].*)")
        assert any(pattern.match(shown) for shown in lines), f"{line!r} is not in:\n{seen}"


@pytest.mark.slow
def test_the_tutorial(tmp_path: Path) -> None:
    """Files are written, commands are run by a shell, and what the page shows of their output is there."""
    env = environment(tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    seen = ""
    ran = []
    for path, language, text in BLOCK.findall(TUTORIAL.read_text()):
        if language == "python":
            file = work / path
            if not ran[1:]:  # the first is what the template makes
                assert file.read_text() == text
            file.write_text(text)
        elif language == "diff":
            old, new = (line[1:] + "\n" for line in text.splitlines())
            file = work / path
            assert file.read_text().count(old) == 1
            file.write_text(file.read_text().replace(old, new))
        elif language == "sh":
            script = text.replace("pip install", "pip install --no-build-isolation")
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=work,
                env=env,
                capture_output=True,
                text=True,
                timeout=250,
                check=False,
            )
            assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
            seen = done.stdout
            ran.append(text)
        else:
            assert language == "text"
            assert_shown(text, seen)
    assert len(ran) == TUTORIAL.read_text().count("```sh")
    assert (work / "report.xml").is_file()
    assert list((work / "models").glob("my-tier-*.onnx"))


@pytest.mark.parametrize(
    ("promised", "there"),
    [
        ("full-batch  pass", True),
        ("full-batch  fail", False),
        ("0 failed", True),
        ("a  b", True),
        ("b  a", False),
    ],
)
def test_a_promise_that_is_not_kept_is_seen(promised: str, there: bool) -> None:
    """The comparison with the page can fail."""
    output = "full-batch   pass   0.5\n3 passed, 0 failed, 1 not applicable\na x b"
    if there:
        assert_shown(promised, output)
    else:
        with pytest.raises(AssertionError, match="is not in"):
            assert_shown(promised, output)
