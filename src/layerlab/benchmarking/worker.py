"""One tier in a process of its own, asked by the coordinator: a line of JSON each way."""

from __future__ import annotations

import json
import os
import platform
import resource
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from layerlab import registry
from layerlab.benchmarking.audit import Trajectory, audit_steps, audit_way
from layerlab.conformance import check
from layerlab.conformance.problems import Problem
from layerlab.errors import LayerlabError, one_line
from layerlab.reference import initial_params
from layerlab.tier import host_copy

if TYPE_CHECKING:
    from collections.abc import Callable

    from layerlab.tier import Precision, Tier

# The proof that comes before the clock: the checks of the kit that say what is computed.
PROOF = ("full-batch", "minibatches", "zeros-at-relu", "small-gradients", "forward-changes-nothing")
WARM_UP = 5
# Gradient descent that converges keeps rounding small over thousands of steps; Adam wants smaller steps.
_RATES = {"sgd": 1.0, "adam": 0.1}


class Worker:
    """A tier, the problem it is timed on, and what it is asked.

    Args:
        name: The tier.
        precision: The precision of the run.
        accelerator: "cpu" or "gpu".
    """

    def __init__(self, name: str, precision: Precision, accelerator: str) -> None:
        self.row = registry.find(name)
        self.tier_class = registry.load(self.row)
        self.precision, self.accelerator = precision, accelerator
        self.device = torch.device("cuda" if accelerator == "gpu" else "cpu")
        self.dtype = torch.float64 if precision == "64-true" else torch.float32
        self._store: Any = None
        self._timed: Any = None

    def prove(self) -> dict[str, Any]:
        """Puts the tier through the part of the conformance suite that says what it computes."""
        report = check(self.row.selector, only=PROOF, accelerator=self.accelerator)
        said = "; ".join(f"{failure.check}: {failure.detail}" for failure in report.failures)
        return {"ok": report.ok, "said": said or f"suite {report.suite}: {', '.join(PROOF)}"}

    def prepare(self, n: int, d_in: int, hidden: int, d_out: int, seed: int) -> dict[str, Any]:
        """Makes the problem, and finds out how long a step takes."""
        rng = np.random.default_rng(seed)
        recipe = self.tier_class.recipe
        bias = recipe.bias and self.tier_class.supports_bias
        host = np.dtype(np.float64 if self.dtype is torch.float64 else np.float32)
        start = initial_params(d_in, hidden, d_out, init="linear", bias=bias, seed=seed)
        self.start = start.map(lambda p: p.astype(host))
        self.x_host, self.y_host = (
            rng.standard_normal(shape).astype(host) for shape in ((n, d_in), (n, d_out))
        )
        x64, y64 = (a.astype(np.float64) for a in (self.x_host, self.y_host))
        problem = Problem("timed", self.start.map(lambda p: p.astype(np.float64)), ((x64, y64),))
        self.lr = _RATES.get(recipe.optimizer, 1.0) * problem.learning_rate(recipe)
        self.way = Trajectory(problem.params, x64, y64, recipe.optimizer, self.lr)
        tier = self._tier()
        x, y = self._tensors()
        began = time.perf_counter()
        float(host_copy(tier.step(x, y)))
        first = time.perf_counter() - began
        count, seconds = 1, 0.0
        while seconds < 0.05 and count < 1 << 16:
            count *= 2
            seconds = self._clock(partial(_repeat, tier.step, x, y, count))
        return {"first_step": first, "step": seconds / count}

    def bare(self, steps: int) -> dict[str, Any]:
        """The tier's own Python loop, which reads the loss of every step."""
        tier = self._tier()
        x, y = self._tensors()
        step = tier.step
        losses = [float(step(x, y)) for _ in range(WARM_UP)]

        def loop() -> None:
            for _ in range(steps):
                losses.append(float(step(x, y)))  # noqa: PERF401 -- it is this loop that is timed

        seconds = self._clock(loop)
        return {"step": seconds / steps, **self._audit(tier, losses, x, y)}

    def floor(self, steps: int) -> dict[str, Any]:
        """The five matrix products of a step and nothing else, results preallocated."""
        x, y = self._tensors()
        w1, w2 = (torch.tensor(w, device=self.device) for w in (self.start.w1, self.start.w2))
        h, y_pred = x.mm(w1), torch.empty_like(y)
        grad_h, grad_w1, grad_w2 = (torch.empty_like(t) for t in (h, w1, w2))

        def loop() -> None:
            for _ in range(steps):
                torch.mm(x, w1, out=h)
                torch.mm(h, w2, out=y_pred)
                torch.mm(h.t(), y, out=grad_w2)
                torch.mm(y, w2.t(), out=grad_h)
                torch.mm(x.t(), grad_h, out=grad_w1)

        return {"step": self._clock(loop) / steps}

    def lightning(self, steps: int) -> dict[str, Any]:
        """The same steps under a Lightning Trainer, nothing recorded."""
        return self._trained(steps, None)

    def tracked(self, steps: int) -> dict[str, Any]:
        """The same under Lightning, every loss in MLflow, until the last one is there."""
        from layerlab.tracking import RunInfo, Store

        if self._store is None:
            self._folder = tempfile.TemporaryDirectory(prefix="layerlab-bench-")
            self._store = Store(f"sqlite:///{self._folder.name}/mlflow.db")
        record = self._store.start_run(RunInfo("bench", self.row.name, {}, {}, None, None))
        try:
            return self._trained(steps, record)
        finally:
            record.finish("FINISHED")

    def facts(self) -> dict[str, Any]:
        """The machine and the settings, as this process sees them; and its peak of memory."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated()
        clock = time.get_clock_info("perf_counter")
        return {
            "peak_mb": peak / 1e6,
            "machine": {
                "platform": platform.platform(),
                "processor": _processor(),
                "cores": os.cpu_count(),
                "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
                "threads": torch.get_num_threads(),
                "tf32": torch.backends.cuda.matmul.allow_tf32,
                "float32_matmul_precision": torch.get_float32_matmul_precision(),
                "cuda_allocator": os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "default"),
                "clock": f"{clock.implementation}, {clock.resolution:g} s",
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
            },
        }

    def _trained(self, steps: int, record: Any) -> dict[str, Any]:
        from layerlab.training import TierModule, TrainingData, make_trainer, quiet_lightning

        x, y = self.x_host.copy(), self.y_host.copy()  # the audit overwrites what it has timed
        clock = _Clock(record)
        module = TierModule(
            self.tier_class,
            self.start,
            TrainingData(x, y, x[:0], y[:0]),
            lr=self.lr,
            batch_size=len(x),
            sink=clock,
        )
        with quiet_lightning():
            trainer = make_trainer(
                accelerator="cuda" if self.accelerator == "gpu" else "cpu",
                precision=self.precision,
                max_steps=steps,
                validate=False,
            )
            trainer.fit(module)
        if record is not None:
            record.drain()
        ended = time.perf_counter()
        # From the end of the first block on: what is set up once is no cost of a step.
        first_steps, first_ended = clock.first
        seconds = (ended - first_ended) / (steps - first_steps)
        return {"step": seconds, **self._audit(module.tier, clock.losses, module.batches.x, module.batches.y)}

    def _tier(self) -> Tier:
        return self.tier_class(self.start, lr=self.lr, device=self.device, dtype=self.dtype)

    def _tensors(self) -> tuple[Any, Any]:
        return tuple(torch.tensor(a, device=self.device) for a in (self.x_host, self.y_host))  # type: ignore[return-value]

    def _clock(self, work: Callable[[], Any]) -> float:
        self._synchronise()
        began = time.perf_counter()
        work()
        self._synchronise()
        return time.perf_counter() - began

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _audit(self, tier: Tier, losses: list[float], x: Any, y: Any) -> dict[str, Any]:
        fault = None
        if self.tier_class.recipe.optimizer in ("sgd", "adam"):
            fault = audit_way(self.way, losses, tier.params())
        fault = fault or audit_steps(tier, x, y, self.precision, self.lr, seed=len(losses))
        return {"fault": fault}


def _repeat(step: Callable[..., Any], x: Any, y: Any, count: int) -> None:
    for _ in range(count):
        float(step(x, y))


class _Clock:
    """A sink that notes when blocks end, and hands on to a record if there is one."""

    def __init__(self, record: Any) -> None:
        self._record = record
        self.first = (0, 0.0)
        self.losses: list[float] = []

    def log_losses(self, first_step: int, losses: Any, began: float, ended: float) -> None:
        if self._record is not None:
            self._record.log_losses(first_step, losses, began, ended)
        self.losses += losses.tolist()
        if first_step == 0:
            self.first = len(losses), time.perf_counter()

    def log_metrics(self, step: int, metrics: Any) -> None:
        """There is no validation."""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def main() -> None:
    """Answers until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinator says when it is over
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # whatever a tier prints is no answer
        worker: Any = None
        for line in sys.stdin:
            request = json.loads(line)
            method = request.pop("do")
            try:
                if method == "begin":
                    worker, answer = Worker(**request), {}
                else:
                    answer = getattr(worker, method)(**request)
            except LayerlabError as error:
                answer = {"error": str(error)}
            except (Exception, SystemExit) as error:  # noqa: BLE001 -- the coordinator tells of it
                answer = {"error": one_line(f"{type(error).__name__}: {error}")}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
