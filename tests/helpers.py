"""What several test modules need, and is no fixture."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from layerlab.tier import Params

BUILTINS = ["numpy", "tensors", "autograd", "custom-function", "nn", "optim", "custom-module"]
# A problem that trains in an instant.
TINY = {"steps": 12, "n": 8, "d_in": 5, "d_out": 3, "hidden": 4}


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it printed."""

    code: int
    stdout: str
    stderr: str


def run_python(code: str, *, cwd: Path, env: dict[str, str] | None = None) -> Result:
    """Runs code in a fresh interpreter."""
    return _run(["-c", code], cwd, env)


def run_command(*arguments: object, cwd: Path, env: dict[str, str] | None = None) -> Result:
    """Runs ``layerlab`` in a fresh process."""
    return _run(["-m", "layerlab", *map(str, arguments)], cwd, env)


def _run(arguments: list[str], cwd: Path, env: dict[str, str] | None) -> Result:
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        timeout=120,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def problem(
    n: int, d_in: int, hidden: int, d_out: int, *, bias: bool, seed: int = 0, dtype: Any = np.float64
) -> tuple[Any, Any, Any]:
    """Parameters, inputs and targets of a random problem."""
    rng = np.random.default_rng(seed)
    params = Params(
        rng.standard_normal((d_in, hidden)),
        rng.standard_normal((hidden, d_out)),
        rng.standard_normal(hidden) if bias else None,
        rng.standard_normal(d_out) if bias else None,
    )
    x, y = rng.standard_normal((n, d_in)), rng.standard_normal((n, d_out))
    return params.map(lambda p: p.astype(dtype)), x.astype(dtype), y.astype(dtype)
