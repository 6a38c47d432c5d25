"""The compiled step against the contract; that it is compiled; and what is said where it cannot be."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.utils import counters

import layerlab
import layerlab_compiled
from layerlab import Params, TierError
from layerlab.conformance import SUITE, check_name
from layerlab.reference import forward, gradients, sgd
from layerlab.testing import TierContract
from layerlab_compiled import CompiledTier

CPU = torch.device("cpu")
# The checks that need further shapes than those of `minibatches`, which all others share. Each shape is
# compiled in each precision, with biases and without, a few seconds each where torch's cache on the disk does
# not have it.
MORE_SHAPES = {
    "full-batch",
    "default-size",
    "single-row",
    "smallest",
    "dead-units",
    "zeros-at-relu",
    "strided-inputs",
    "learns",
}
# Torch's own limit of compilations of one function.
LIMIT = 8

pytestmark = [
    # one process, so that a shape is compiled once
    pytest.mark.xdist_group("compiled"),
    # what Inductor imports when it compiles for the first time
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.* is deprecated:DeprecationWarning"),
]
needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="there is no C++ compiler"
)


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets layerlab find this plugin, whatever else is installed."""
    monkeypatch.setenv("LAYERLAB_PLUGINS", "layerlab-compiled")


@pytest.mark.slow
@needs_compiler
class TestCompiled(TierContract):
    """The contract that every tier keeps; compiling for all its shapes takes minutes."""

    tier = "compiled"


class SinglePrecision(CompiledTier):
    """The tier, of which only one half is looked at."""

    precisions = frozenset({"32-true"})


@needs_compiler
def test_the_checks_that_share_a_shape_pass() -> None:
    """In single precision all of the contract but its other shapes; `TestCompiled` has the rest, slowly."""
    names = {check_name(single) for single in SUITE}
    assert names >= MORE_SHAPES
    report = layerlab.check(SinglePrecision, only=sorted(names - MORE_SHAPES))
    assert report.ok, report.failures
    not_applicable = {result.check for result in report.results if result.result == "n/a"}
    no_gpu = (
        set() if torch.cuda.is_available() else {"runs-on-the-gpu", "step-does-not-wait", "replays-agree"}
    )
    assert not_applicable == {"mixed-precision", "gradients-are-used", *no_gpu}


def make(
    n: int = 8, d_in: int = 6, hidden: int = 5, n_out: int = 3, *, lr: float = 1e-3
) -> tuple[CompiledTier, torch.Tensor, torch.Tensor]:
    """A tier in double precision, inputs and targets; pre-activations of the first unit are exactly 0."""
    rng = np.random.default_rng(0)
    w1, b1 = rng.standard_normal((d_in, hidden)), rng.standard_normal(hidden)
    w1[:, 0], b1[0] = 0, 0
    params = Params(w1, rng.standard_normal((hidden, n_out)), b1, rng.standard_normal(n_out))
    tier = CompiledTier(params, lr=lr, device=CPU, dtype=torch.float64)
    return tier, *(torch.from_numpy(rng.standard_normal((n, width))) for width in (d_in, n_out))


def assert_equal(actual: Params, expected: Params) -> None:
    for p, q in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(p, q)


@needs_compiler
def test_double_precision_follows_the_oracle() -> None:
    """Loss, parameters and predictions at every step, each going its own way; nothing passes relu at 0."""
    tier, x, y = make()
    params = tier.params()
    for _ in range(20):
        loss = float(tier.step(x, y))
        expected, grads = gradients(params, x.numpy(), y.numpy())
        params = sgd(params, grads, lr=1e-3)
        assert loss == pytest.approx(expected, rel=1e-12)
        for p, q in zip(tier.params(), params, strict=True):
            np.testing.assert_allclose(p, q, rtol=1e-12, atol=1e-13)
    assert not tier.params().w1[:, 0].any()
    np.testing.assert_allclose(tier.forward(x), forward(params, x.numpy()), rtol=1e-12, atol=1e-13)


def graphs() -> int:
    """How many graphs torch has compiled in this process."""
    return int(counters["stats"]["unique_graphs"])


@pytest.fixture
def _forgotten() -> Any:
    """Nothing is compiled yet, and nothing that a test compiles under other settings stays."""
    layerlab_compiled._compiled_step.cache_clear()
    yield
    layerlab_compiled._compiled_step.cache_clear()


@needs_compiler
@pytest.mark.usefixtures("_forgotten")
def test_each_layout_is_compiled_once_for_all_tiers() -> None:
    """Another tier, at another rate, compiles nothing; a batch of another size does, once."""
    before = graphs()
    for lr in (1e-3, 1e-4):
        tier, x, y = make(lr=lr)
        for _ in range(3):
            tier.step(x, y)
    assert graphs() == before + 1
    tier.step(x[:7], y[:7])
    tier.step(x, y)
    assert graphs() == before + 2


@needs_compiler
@pytest.mark.usefixtures("_forgotten")
def test_what_runs_is_compiled_code() -> None:
    """Torch's profiler sees a compiled region in a step after the first, and none of the small operations."""
    tier, x, y = make()
    tier.step(x, y)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        tier.step(x, y)
    names = {event.key for event in seen.key_averages()}
    assert any("Torch-Compiled Region" in name for name in names), names
    # what the lines call and a compiled step does not: fused, or written into memory that is there
    assert not names & {"aten::clamp", "aten::sub_", "aten::square", "aten::gt"}


@pytest.mark.slow
@needs_compiler
@pytest.mark.usefixtures("_forgotten")
def test_more_shapes_than_torch_compiles_of_one_function_are_compiled() -> None:
    """Past torch's limit every shape still gets its code, and the limit is what it was."""
    before = graphs()
    for n in range(1, LIMIT + 4):
        tier, x, y = make(n)
        tier.step(x, y)
        tier.step(x, y)
    assert graphs() == before + LIMIT + 3
    assert torch._dynamo.config.recompile_limit == LIMIT


@needs_compiler
@pytest.mark.usefixtures("_forgotten")
def test_a_step_that_torch_gives_up_on_is_an_error() -> None:
    """At the limit of compilations, here 1, another kind of input raises; nothing runs uncompiled."""
    tier, x, y = make()
    tier.step(x, y)
    before = tier.params()
    with torch._dynamo.config.patch(recompile_limit=1), pytest.raises(FailOnRecompileLimitHit):
        tier.step(x.requires_grad_(), y)
    assert_equal(tier.params(), before)


@needs_compiler
@pytest.mark.parametrize("compiled_before", [False, True], ids=["first-step", "later-step"])
def test_compiling_switched_off_is_an_error(compiled_before: bool) -> None:
    """Where torch would run the lines as they stand, the tier raises, and nothing is trained."""
    tier, x, y = make()
    if compiled_before:
        tier.step(x, y)
    before = tier.params()
    with torch.compiler.set_stance("force_eager"), pytest.raises(TierError, match="did not compile the step"):
        tier.step(x, y)
    assert_equal(tier.params(), before)


@needs_compiler
def test_inputs_that_require_gradients_train_the_same() -> None:
    """The loss has no graph, parameters stay plain, and nothing is another number."""
    (plain, x, y), (tier, _, _) = make(), make()
    expected = plain.step(x, y)
    loss = tier.step(x.clone().requires_grad_(), y)
    assert not loss.requires_grad
    assert float(loss) == float(expected)
    assert_equal(tier.params(), plain.params())


def test_building_a_tier_compiles_nothing() -> None:
    """Construction is cheap: the first step compiles, where the bench can see it."""
    before = graphs()
    make(11)
    assert graphs() == before


def test_the_compiler_that_is_looked_for_is_torchs() -> None:
    """The tier and Inductor mean the same program; where it is found, torch finds it too."""
    from torch._inductor import config
    from torch._inductor.cpp_builder import get_cpp_compiler

    name = layerlab_compiled._cpp_compiler()
    if sys.platform != "win32":
        assert config.cpp.cxx[-1] == name
    if shutil.which(name):
        assert get_cpp_compiler() == name


@pytest.mark.parametrize("cxx", [None, "no-such-compiler", ""], ids=["unset", "missing", "empty"])
def test_a_tier_is_not_built_for_the_cpu_without_a_compiler(
    cxx: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither on the PATH nor in the variable: the message names what was looked for."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    if cxx is not None:
        monkeypatch.setenv("CXX", cxx)
    wanted = layerlab_compiled._cpp_compiler() if cxx is None else cxx
    with pytest.raises(TierError, match=re.escape(f"there is no '{wanted}' on the PATH")) as raised:
        make()
    assert "CXX" in str(raised.value.hint)


@pytest.mark.skipif(importlib.util.find_spec("triton") is not None, reason="Triton is installed")
def test_a_tier_is_not_built_for_cuda_without_triton() -> None:
    """Said before anything is put on the device, which there need not be."""
    params = Params(np.ones((2, 2)), np.ones((2, 2)))
    with pytest.raises(TierError, match="needs Triton") as raised:
        CompiledTier(params, lr=1.0, device=torch.device("cuda"), dtype=torch.float64)
    assert raised.value.hint == "pip install triton"


def test_a_tier_is_not_built_for_cuda_without_a_c_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton builds with it what launches a kernel; without one it would say so in the midst of a step."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)  # Triton is there
    params = Params(np.ones((2, 2)), np.ones((2, 2)))
    with pytest.raises(TierError, match="needs a C compiler, and there is no gcc or clang") as raised:
        CompiledTier(params, lr=1.0, device=torch.device("cuda"), dtype=torch.float64)
    assert "CC" in str(raised.value.hint)


def test_a_run_without_a_compiler_ends_in_one_line_and_a_hint(tmp_path: Path) -> None:
    """The command: what is missing, how to get it, no traceback, exit 1."""
    programs, work = tmp_path / "bin", tmp_path / "work"
    programs.mkdir()
    work.mkdir()
    for needed in ("env", "sh", "uname"):  # what other libraries may call; no compiler is among them
        if found := shutil.which(needed):
            (programs / needed).symlink_to(found)
    env = {k: v for k, v in os.environ.items() if k not in ("CXX", "MLFLOW_TRACKING_URI")}
    done = subprocess.run(
        [sys.executable, "-m", "layerlab", "run", "--plugin", "compiled", "--steps", "5", "--no-export"],
        cwd=work,
        env={**env, "PATH": str(programs)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "Traceback" not in said
    failed, hint = done.stderr.splitlines()[-2:]
    assert failed.startswith("compiled: FAILED: tier 'compiled': compiling for the CPU needs a C++ compiler")
    assert hint.startswith("hint: install one (Debian, Ubuntu: apt install g++)")
    assert done.stderr.count("FAILED") == done.stderr.count("hint:") == 1


@needs_compiler
def test_a_run_is_recorded_and_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`layerlab.run` finds the tier by its name and leaves a checked file."""
    monkeypatch.chdir(tmp_path)
    # the sizes of `minibatches`, which are compiled already
    run = layerlab.run(plugin="compiled", n=8, d_in=6, hidden=5, d_out=3, steps=5).runs[0]
    assert (run.status, run.error) == ("FINISHED", None)
    assert (tmp_path / run.onnx["path"]).is_file()


@pytest.mark.gpu
def test_on_cuda_the_checks_that_share_a_shape_pass() -> None:
    """With the tensors on the device, where torch advises TF32: a warning would be an error here."""
    names = {check_name(single) for single in SUITE} - MORE_SHAPES
    assert "replays-agree" in names
    report = layerlab.check(SinglePrecision, only=sorted(names), accelerator="gpu")
    assert report.ok, report.failures
