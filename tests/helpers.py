"""What several test modules need, and is no fixture."""

from __future__ import annotations

import importlib
import os
import platform
import select
import subprocess
import sys
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layerlab.tier import Params

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

BUILTINS = ["numpy", "tensors", "autograd", "custom-function", "nn", "optim", "custom-module"]
# Whether glibc takes a threshold of more than 32 MB for blocks that it gives back at once: older ones do not.
_LIBC, _VERSION = platform.libc_ver()
KEEPS_BLOCKS = _LIBC == "glibc" and [int(part) for part in _VERSION.split(".")] >= [2, 36]
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


def recorders(trainer: int) -> list[int]:
    """The recording processes of a trainer; none where it is gone."""
    found = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{trainer}/task/{trainer}/children").read_text().split():
            if "layerlab.tracking.process" in Path(f"/proc/{child}/cmdline").read_text():
                found.append(int(child))  # noqa: PERF401 -- those found before an error count
    return found


@contextmanager
def recorders_waited_for(trainer: int) -> Iterator[None]:
    """At the end of this context the recording processes have ended that a trainer has at its beginning."""
    ends = []
    for recorder in recorders(trainer):
        with suppress(ProcessLookupError):
            ends.append(os.pidfd_open(recorder))
    yield
    for end in ends:
        assert select.select([end], [], [], 60)[0], "the recording process does not end"
        os.close(end)


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


# What the tiers of third parties are made of here: `Good` trains, the others lack something.
TIERS = '''
"""A tier of a third party."""
# no torch at the top: importing it takes seconds, and the broken ones do not need it
from layerlab import Params, Recipe, Tier


class Good(Tier):
    """Trains by autograd."""

    contract_version = 1

    supports_bias = False
    recipe = Recipe(optimizer="sgd", lr=1e-4, init="linear", bias=False)

    def __init__(self, params, *, lr, device, dtype):
        import torch

        self.lr, self.gradients_of = lr, torch.autograd.grad
        self.ws = [torch.tensor(w, device=device, requires_grad=True) for w in params[:2]]

    def forward(self, x):
        return (x @ self.ws[0]).relu() @ self.ws[1]

    def step(self, x, y):
        loss = (self.forward(x) - y).square().sum()
        for w, gradient in zip(self.ws, self.gradients_of(loss, self.ws)):
            w.data -= self.lr * gradient
        return loss.detach()

    def params(self):
        return Params.copy_of(*self.ws)


class Empty(Tier):
    recipe = Recipe()


class Plain(Tier):
    def __init__(self, params, *, lr, device, dtype): ...
    def forward(self, x): ...
    def params(self): ...
    def step(self, x, y): ...


class NumberForBias(Plain):
    recipe = Recipe(bias=1)


class DictRecipe(Plain):
    recipe = {"lr": 1e-4}


class UnknownInit(Plain):
    recipe = Recipe(init="zeros")


class NanRate(Plain):
    recipe = Recipe(lr=float("nan"))


class TrueRate(Plain):
    recipe = Recipe(lr=True)


class ShoutedOptimizer(Plain):
    recipe = Recipe(optimizer="SGD", lr=1.0, init="linear", bias=False)


class StateOnly(Plain):
    recipe = Recipe(optimizer="sgd", lr=1.0, init="linear", bias=False)

    def state(self): ...


class OnlyBackward(Tier):
    recipe = Recipe()
    def __init__(self, params, *, lr, device, dtype): ...
    def forward(self, x): ...
    def params(self): ...
    def backward(self, x, y_pred, y): ...


class Quantum(Plain):
    recipe = Recipe()
    accelerators = frozenset({"qpu"})


class ListOfAccelerators(Plain):
    recipe = Recipe()
    accelerators = ["tpu"]


class TextOfPrecisions(Plain):
    recipe = Recipe()
    precisions = "8-true"


not_a_class = 5


class NotATier:
    pass
'''


@dataclass
class Site:
    """A folder of installed distributions, as pip would have left them."""

    path: Path
    patch: pytest.MonkeyPatch

    def add(
        self, distribution: str, points: dict[str, str], code: str = TIERS, *, metadata: str | None = None
    ) -> str:
        """Installs a distribution with one module; in ``points``, ``MODULE`` stands for its name."""
        module = f"module_of_{distribution.replace('-', '_')}"
        info = self.path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        lines = [f"{name} = {target.replace('MODULE', module)}" for name, target in points.items()]
        (info / "entry_points.txt").write_text("[layerlab.tiers]\n" + "\n".join(lines) + "\n")
        default = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\nSummary: Of {distribution}.\n"
        if metadata is None:
            metadata = default
        if metadata:
            (info / "METADATA").write_text(metadata)
        (self.path / f"{module}.py").write_text(code)
        importlib.invalidate_caches()
        return module

    def allow(self, *distributions: str) -> None:
        """Allows these and no others beside the built-ins."""
        self.patch.setenv("LAYERLAB_PLUGINS", ",".join(distributions))


class SameMemory:
    """In CUDA's place where there is none: what was captured is done again by Python, on the same tensors."""

    def __init__(self) -> None:
        self.captures = 0

    @contextmanager
    def stream(self) -> Iterator[None]:
        yield

    def watched(self) -> AbstractContextManager[None]:
        return nullcontext()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        return work
