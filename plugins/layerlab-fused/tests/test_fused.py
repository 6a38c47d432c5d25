"""The fused step, compiled and not, against the contract and against the float64 oracle."""

from __future__ import annotations

import copy
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import layerlab
import layerlab_fused
from layerlab import Params
from layerlab.reference import gradients, sgd
from layerlab.testing import TierContract
from layerlab_fused import FusedTier
from layerlab_fused.torch_step import TorchStep

try:
    from layerlab_fused.compiled import CompiledStep
except ImportError:
    CompiledStep = None

STEPS = 50


# Every way to make a step on the CPU: the kernels that this processor has, and torch's operations.
needs_compiled = pytest.mark.skipif(CompiledStep is None, reason="built without a C compiler that has OpenMP")
WIDEST = layerlab_fused.compiled._step.WIDEST if CompiledStep else 0
KINDS = {
    **{
        name: pytest.param(
            partial(CompiledStep, kernel=kernel) if CompiledStep else None, marks=needs_compiled
        )
        for kernel, name in ((0, "any"), (2, "avx2"), (4, "avx512"))
        if kernel <= WIDEST
    },
    "torch": TorchStep,
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets layerlab find this plugin, whatever else is installed."""
    monkeypatch.setenv("LAYERLAB_PLUGINS", "layerlab-fused")


class TestFused(TierContract):
    """The contract that every tier keeps."""

    tier = "fused"


class TestWithoutACompiler(TierContract):
    """The same on torch's operations."""

    tier = "fused"

    @pytest.fixture(autouse=True)
    def _not_compiled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(layerlab_fused, "CompiledStep", None)


# N, D_in, H, D_out
SHAPES = [(8, 6, 5, 3), (1, 4, 3, 2), (1, 1, 1, 1), (32, 17, 9, 1)]
# Just beside the ends of vectors, tiles and blocks, in each direction; the last of whole ones only.
BLOCKED = [
    (65, 193, 6, 4),
    (63, 1025, 5, 7),
    (130, 191, 13, 3),
    (9, 2049, 3, 1),
    (3, 7, 2, 97),
    (64, 192, 8, 3),
    (66, 120, 7, 6),
    (33, 97, 7, 6),
    (17, 84, 7, 6),
]
# On CUDA: the default problem, one of the most outputs that the kernels take, and one that they do not.
LARGE = [(64, 1000, 100, 10), (64, 1000, 300, 32), (64, 1000, 600, 3)]


def problem(n: int, d_in: int, hidden: int, d_out: int, *, bias: bool) -> tuple[Params, Any, Any, float]:
    """Parameters, inputs, targets, and a rate whose first step moves the largest weight by about 1 %."""
    rng = np.random.default_rng(0)
    biases = (rng.standard_normal(hidden), rng.standard_normal(d_out)) if bias else (None, None)
    params = Params(rng.standard_normal((d_in, hidden)), rng.standard_normal((hidden, d_out)), *biases)
    x, y = rng.standard_normal((n, d_in)), rng.standard_normal((n, d_out))
    _, grads = gradients(params, x, y)
    return params, x, y, 0.01 / max(np.abs(g).max() for g in grads if g is not None)


def make(
    params: Params, lr: float, kind: Any = CompiledStep, dtype: torch.dtype = torch.float64
) -> FusedTier:
    host = np.float64 if dtype is torch.float64 else np.float32
    first = params.map(lambda p: p.astype(host))
    tier = FusedTier(first, lr=lr, device=torch.device("cpu"), dtype=dtype)
    tier._kind = kind
    return tier


def on_cuda(params: Params, lr: float) -> FusedTier:
    return FusedTier(params.map(np.float32), lr=lr, device=torch.device("cuda:0"), dtype=torch.float32)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads torch has, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def single(a: Any) -> Any:
    """As float32 holds it."""
    return a.astype(np.float32).astype(np.float64)


def pairs(actual: Params, expected: Params) -> list[tuple[str, Any, Any]]:
    both = zip(Params._fields, actual, expected, strict=True)
    return [(name, p, q) for name, p, q in both if q is not None]


def assert_follows(
    tier: FusedTier, params: Params, x: Any, y: Any, lr: float, *, steps: int = STEPS, rel: float = 1e-9
) -> None:
    dtype = tier._w.w2.dtype
    for step in range(steps):
        loss = float(tier.step(torch.tensor(x, dtype=dtype), torch.tensor(y, dtype=dtype)))
        expected, grads = gradients(params, x, y)
        params = sgd(params, grads, lr=lr)
        assert loss == pytest.approx(expected, rel=rel), step
        for name, p, q in pairs(tier.params(), params):
            assert np.abs(p - q).max() <= rel * np.abs(q).max(), (step, name)


@every_kind
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_float64_follows_the_oracle_for_50_steps(bias: bool, shape: tuple[int, ...], kind: Any) -> None:
    """Loss and parameters agree to 1e-9 at every step, each going its own way from the start."""
    params, x, y, lr = problem(*shape, bias=bias)
    assert_follows(make(params, lr, kind), params, x, y, lr)


@every_kind
@pytest.mark.parametrize("shape", BLOCKED, ids=str)
def test_what_does_not_fill_a_block_is_computed_too(shape: tuple[int, ...], kind: Any) -> None:
    """The same of sizes that leave something over, in both types: other numbers of them fill a vector."""
    params, x, y, lr = problem(*shape, bias=True)
    assert_follows(make(params, lr, kind), params, x, y, lr, steps=3)
    params, x, y = params.map(single), single(x), single(y)
    # Of the sums of a step the longest has so many terms, each rounded; what is in the loss is squared.
    rel = 4 * sum(shape) * 2.0**-24
    assert_follows(make(params, lr, kind, torch.float32), params, x, y, lr, steps=1, rel=rel)


# A batch that ends where memory does that must not be read: whatever reads on is killed by the system.
AT_THE_END = """
import ctypes, mmap, sys
import numpy as np, torch
from layerlab import Params
from layerlab_fused.compiled import CompiledStep
from layerlab_fused.weights import Weights

def at_the_end(dtype, *shape):
    size, width = int(np.prod(shape)), np.dtype(dtype).itemsize
    pages = -(-size * width // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    whole = np.frombuffer(memory, dtype=dtype)
    behind = whole.ctypes.data + pages * mmap.PAGESIZE
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(behind), mmap.PAGESIZE, 0) == 0
    given = whole[pages * mmap.PAGESIZE // width - size :][:size].reshape(shape)
    given[...] = 1
    return torch.from_numpy(given)

cpu, rng = torch.device("cpu"), np.random.default_rng(0)
for kernel in map(int, sys.argv[1:]):
    for n, d_in, hidden, d_out in [(1, 1, 1, 1), (3, 31, 7, 3), (65, 193, 6, 4), (66, 120, 7, 5)]:
        params = Params(rng.standard_normal((d_in, hidden)), rng.standard_normal((hidden, d_out)))
        for host, dtype in ((np.float32, torch.float32), (np.float64, torch.float64)):
            step = CompiledStep(Weights.of(params, cpu, dtype), -1e-6, n, kernel)
            assert np.isfinite(step(at_the_end(host, n, d_in), at_the_end(host, n, d_out)))
print("all")
"""


@needs_compiled
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect is called as Linux has it")
def test_nothing_is_read_that_is_behind_a_batch() -> None:
    """The last columns fill no vector, for one kernel or the other, and are not taken for a full one."""
    kernels = [str(kernel) for kernel in range(0, WIDEST + 1, 2)]
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_END, *kernels], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "all\n"), done.stderr


@every_kind
def test_the_order_of_the_first_parameters_in_memory_is_of_no_account(kind: Any) -> None:
    """Other tiers' parameters may be transposed; those that go in are copied in the tier's own order."""
    params, x, y, lr = problem(8, 6, 5, 3, bias=True)
    assert_follows(make(params.map(np.asfortranarray), lr, kind), params, x, y, lr, steps=3)


@every_kind
def test_a_copy_goes_on_by_itself(kind: Any) -> None:
    """Steps of a copy change nothing of the tier that it was made of, and it changes nothing of the copy."""
    params, x, y, lr = problem(8, 6, 5, 3, bias=True)
    tier, batch, other = make(params, lr, kind), *((torch.tensor(x + i), torch.tensor(y)) for i in (0, 1))
    for given in (batch, batch, batch, other):
        tier.step(*given)
    before, twin = tier.params(), copy.deepcopy(tier)
    losses = [float(twin.step(*given)) for given in (batch, other, batch, batch, other)]
    for name, p, q in pairs(tier.params(), before):
        assert (p == q).all(), name
    assert [float(tier.step(*given)) for given in (batch, other, batch, batch, other)] == losses
    for name, p, q in pairs(tier.params(), twin.params()):
        assert (p == q).all(), name


@needs_compiled
@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize(
    ("dtype", "rel"), [(torch.float64, 1e-9), (torch.float32, 67 * 4 * 2.0**-24)], ids=str
)
def test_any_number_of_threads_computes_the_same(
    count: int,
    dtype: torch.dtype,
    rel: float,
    threads: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where there are more of them than hidden units, and where their number changes on the way."""
    monkeypatch.setattr("layerlab_fused.compiled._OPERATIONS", 1)
    params, x, y, lr = problem(67, 50, 5, 3, bias=True)
    params, x, y = params.map(single), single(x), single(y)
    tier = make(params, lr, dtype=dtype)
    for number in (count, count + 1, 1):
        threads(number)
        before = tier.params().map(lambda p: p.astype(np.float64))
        assert_follows(tier, before, x, y, lr, steps=2, rel=rel)


@needs_compiled
def test_the_same_number_of_threads_gives_the_same_bits(
    threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing depends on which thread is the first to be done."""
    monkeypatch.setattr("layerlab_fused.compiled._OPERATIONS", 1)
    threads(3)
    params, x, y, lr = problem(67, 50, 9, 3, bias=True)
    tiers = [make(params, lr) for _ in range(2)]
    for _ in range(STEPS):
        one, other = (tier.step(torch.from_numpy(x), torch.from_numpy(y)) for tier in tiers)
        assert one == other
    for name, p, q in pairs(*(tier.params() for tier in tiers)):
        assert (p == q).all(), name


@every_kind
@pytest.mark.parametrize("where", ["x", "y", "w1"])
def test_what_is_not_a_number_is_not_lost(where: str, kind: Any) -> None:
    """A NaN anywhere is in the loss: a training that has diverged is seen to."""
    params, x, y, lr = problem(8, 6, 5, 3, bias=True)
    {"x": x, "y": y, "w1": params.w1}[where][0] = np.nan
    assert np.isnan(float(make(params, lr, kind).step(torch.from_numpy(x), torch.from_numpy(y))))


@needs_compiled
@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.zeros(8, 6), torch.zeros(8, 3)),
        (torch.zeros(8, 7, dtype=torch.float64), torch.zeros(8, 3, dtype=torch.float64)),
        (torch.zeros(8, 6, dtype=torch.float64), torch.zeros(7, 3, dtype=torch.float64)),
        (torch.zeros(8, 6, dtype=torch.float64, device="meta"), torch.zeros(8, 3, dtype=torch.float64)),
    ],
    ids=["dtype", "inputs", "rows", "device"],
)
def test_a_batch_that_does_not_fit_is_refused(x: torch.Tensor, y: torch.Tensor) -> None:
    """What the C would read beyond its end never gets there, nor is it repeated, or cast, to fit."""
    params, fit_x, fit_y, lr = problem(8, 6, 5, 3, bias=True)
    tier = make(params, lr)
    tier.step(torch.tensor(fit_x), torch.tensor(fit_y))
    before = tier.params()
    with pytest.raises(ValueError, match=r"float64 of shapes \(\(8, 6\), \(8, 3\)\) on cpu expected"):
        tier.step(x, y)
    for name, p, q in pairs(tier.params(), before):
        assert (p == q).all(), name


@needs_compiled
def test_a_plan_of_another_size_is_refused() -> None:
    """A Python side and a C side that do not belong together say so."""
    with pytest.raises(ValueError, match="the plan has another size"):
        layerlab_fused.compiled._step.step(b"", 0, 0, 1)


class TestWhereKernelsAreBuilt:
    """Whether the step on CUDA is our kernels, as far as can be seen without one."""

    cuda = torch.device("cuda")

    @pytest.fixture(autouse=True)
    def _anew(self) -> Iterator[None]:
        layerlab_fused.kernels_for.cache_clear()
        yield
        layerlab_fused.kernels_for.cache_clear()

    @pytest.fixture
    def tried(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.device]]:
        """Where they were tried; our modules are the real ones, with a Triton that compiles nothing."""
        stands_in = importlib.util.find_spec("triton") is None
        if stands_in:
            (tmp_path / "triton").mkdir()
            (tmp_path / "triton" / "__init__.py").write_text("def jit(function):\n    return function\n")
            (tmp_path / "triton" / "language.py").write_text("")
            monkeypatch.syspath_prepend(tmp_path)
        devices: list[torch.device] = []
        monkeypatch.setattr("layerlab_fused.triton_step.try_out", devices.append)
        yield devices
        if stands_in:
            monkeypatch.undo()
            for name in ("triton", "triton.language"):
                del sys.modules[name]
            for name in ("kernels", "triton_step"):
                del sys.modules[f"layerlab_fused.{name}"]
                delattr(layerlab_fused, name)

    def test_they_are_tried_once_a_device(self, tried: list[torch.device]) -> None:
        """And are what is made from then on."""
        other = torch.device("cuda:1")
        kinds = [layerlab_fused.kernels_for(device) for device in (self.cuda, self.cuda, other, self.cuda)]
        assert {kind.__name__ for kind in kinds} == {"TritonStep"}
        assert tried == [self.cuda, other]

    @pytest.mark.usefixtures("tried")
    def test_what_cannot_be_built_is_torchs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """No compiler, no headers, nowhere to write: it is said once."""

        def broken(_: torch.device) -> None:
            raise RuntimeError("Failed to find C compiler")

        monkeypatch.setattr("layerlab_fused.triton_step.try_out", broken)
        with pytest.warns(UserWarning, match="cannot be built, torch's .* Failed to find C compiler"):
            assert layerlab_fused.kernels_for(self.cuda) is None
        assert layerlab_fused.kernels_for(self.cuda) is None

    @pytest.mark.skipif(importlib.util.find_spec("triton") is not None, reason="Triton is installed")
    def test_without_triton_they_are_torchs(self) -> None:
        """Which is no news to whoever has a torch without it."""
        assert layerlab_fused.kernels_for(self.cuda) is None


@pytest.mark.gpu
class TestOnCuda:
    """The kernels, and torch's operations, on the device."""

    def test_the_whole_suite(self) -> None:
        """Every check, with the tensors on the device."""
        report = layerlab.check("fused", accelerator="gpu")
        assert report.ok, report.failures

    @pytest.mark.parametrize("shape", [*LARGE, *SHAPES, *BLOCKED], ids=str)
    @pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
    @pytest.mark.parametrize("lies", ["contiguous", "apart", "anywhere"])
    def test_the_kernels_follow_the_oracle(self, shape: tuple[int, ...], bias: bool, lies: str) -> None:
        """Of sizes that fill tiles and that leave something over, of rows that lie apart, and of some that
        begin, in the second step, where a kernel that was compiled for whole vectors must not read."""
        params, x, y, lr = problem(*shape, bias=bias)
        params, x, y = params.map(single), single(x), single(y)
        tier = on_cuda(params, lr)

        def there(array: Any, step: int) -> torch.Tensor:
            tensor = torch.tensor(array, dtype=torch.float32, device="cuda")
            if lies == "apart":
                return tensor.t().contiguous().repeat_interleave(2, 1).t()[::2]
            if lies == "anywhere" and step:
                return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)
            return tensor

        for step in range(2):
            before = tier.params().map(np.float64)
            batch = there(x, step), there(y, step)
            loss, (expected, grads) = float(tier.step(*batch)), gradients(before, x, y)
            rel = 4 * sum(shape) * 2.0**-24  # as on the CPU, of what the step adds; the sum is rounded once
            assert loss == pytest.approx(expected, rel=rel)
            after = sgd(before, grads, lr=lr)
            for (name, p, q), start in zip(pairs(tier.params(), after), pairs(before, before), strict=True):
                most = 2.0**-23 * np.abs(q).max() + rel * np.abs(q - start[1]).max()
                assert np.abs(p - q).max() <= most, name
        large = shape in ((3, 7, 2, 97), (64, 1000, 600, 3))
        assert type(tier._steps[len(x)]).__name__ == ("TorchStep" if large else "TritonStep")

    def test_the_same_bits_every_time_and_in_a_copy(self) -> None:
        """Sums are made in one order, and a copy of a tier goes on by itself."""
        params, x, y, lr = problem(64, 1000, 100, 10, bias=True)
        batch = [torch.tensor(a, dtype=torch.float32, device="cuda") for a in (x, y)]
        one, two = (on_cuda(params, lr) for _ in range(2))
        losses = [float(one.step(*batch)) for _ in range(5)]
        assert [float(two.step(*batch)) for _ in range(5)] == losses
        before, twin = one.params(), copy.deepcopy(one)
        losses = [float(twin.step(*batch)) for _ in range(5)]
        for name, p, q in pairs(one.params(), before):
            assert (p == q).all(), name
        assert [float(one.step(*batch)) for _ in range(5)] == losses

    def test_minibatches_are_those_of_the_cpu(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Copied to one place, and replayed there: to the rounding of some steps."""
        monkeypatch.chdir(tmp_path)
        on_cpu, on_gpu = (
            layerlab.run(plugin="fused", data="diabetes", batch_size=50, epochs=5, accelerator=a).runs[0]
            for a in ("cpu", "gpu")
        )
        assert (on_gpu.status, on_gpu.error, on_gpu.device) == ("FINISHED", None, "cuda:0")
        assert on_gpu.final_loss == pytest.approx(on_cpu.final_loss, rel=1e-4)

    @pytest.mark.parametrize("where", ["x", "y", "w1"])
    def test_what_is_not_a_number_is_not_lost(self, where: str) -> None:
        """As on the CPU."""
        params, x, y, lr = problem(8, 6, 5, 3, bias=True)
        {"x": x, "y": y, "w1": params.w1}[where][0] = np.nan
        batch = [torch.tensor(a, dtype=torch.float32, device="cuda") for a in (x, y)]
        ours, theirs = on_cuda(params, lr), on_cuda(params, lr)
        theirs._kind = TorchStep
        assert np.isnan(float(ours.step(*batch)))
        theirs.step(*batch)
        for name, p, q in pairs(ours.params(), theirs.params()):
            assert (np.isnan(p) == np.isnan(q)).all(), name

    def test_a_batch_that_does_not_fit_is_refused(self) -> None:
        """The kernels would read beyond its end."""
        params, _, _, lr = problem(8, 6, 5, 3, bias=True)
        tier = on_cuda(params, lr)
        tier.step(torch.zeros(8, 6, device="cuda"), torch.zeros(8, 3, device="cuda"))
        with pytest.raises(ValueError, match=r"float32 of shapes \(\(8, 6\), \(8, 3\)\) on cuda:0 expected"):
            tier.step(torch.zeros(8, 5, device="cuda"), torch.zeros(8, 3, device="cuda"))


def test_a_run_is_recorded_and_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`layerlab.run` finds the tier by its name and leaves a checked file."""
    monkeypatch.chdir(tmp_path)
    run = layerlab.run(plugin="fused", data="iris", epochs=3, hidden=8).runs[0]
    assert (run.status, run.error) == ("FINISHED", None)
    assert (tmp_path / run.onnx["path"]).is_file()
