"""Who asks whom, when: one worker a tier, one round after the other, all tiers in turn."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from layerlab import registry
from layerlab.benchmarking.report import MODES, BenchReport, Config, Row, Timing
from layerlab.errors import SpecError, did_you_mean, one_line
from layerlab.report import Observer
from layerlab.signals import StopSignals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerlab.registry import TierRow
    from layerlab.tracking import RunRecord

ROUNDS = 9
SECONDS = 0.2
# A Trainer's blocks grow to a quarter of a second: a round must hold several of them to show their pace.
_TRAINERS_TIMES = 5
_FEWEST_STEPS, _MOST_STEPS = 20, 5000


class Refused(Exception):  # noqa: N818 -- nothing of ours went wrong
    """A tier gets no row; the message says why."""


def bench(
    tiers: Sequence[str] = (registry.ALL,),
    *,
    batch_size: Sequence[int] = (64,),
    d_in: Sequence[int] = (1000,),
    hidden: Sequence[int] = (100,),
    d_out: Sequence[int] = (10,),
    modes: Sequence[str] = MODES,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    precision: str = "32-true",
    accelerator: str = "cpu",
    seed: int = 0,
    experiment: str = "layerlab-bench",
    tracking_uri: str | None = None,
    observer: Observer | None = None,
) -> BenchReport:
    """Measures tiers side by side; a tier that fails its proof or an audit has no row.

    Args:
        tiers: Names of tiers; "all" is the seven built-in ones.
        batch_size: Rows a step; several make a sweep, as with the other sizes.
        d_in: Inputs.
        hidden: Hidden units.
        d_out: Outputs.
        modes: What to measure, of "bare", "lightning", "tracked"; "bare" is always among them.
        rounds: Rounds of each tier, mode and problem.
        seconds: About how long a round is; one under a Trainer is five times as long.
        precision: "32-true" or "64-true".
        accelerator: "cpu" or "gpu".
        seed: What problems are drawn from.
        experiment: The MLflow experiment that keeps the bench.
        tracking_uri: The MLflow store; None: ``MLFLOW_TRACKING_URI``, or ``sqlite:///mlflow.db``.
        observer: Told what happens while it happens.

    Raises:
        InputError: It cannot be done as asked; nothing was recorded.
        Interrupted: SIGINT or SIGTERM; the MLflow run is KILLED.
    """
    observer = observer or Observer()
    sizes = {"batch_size": batch_size, "d_in": d_in, "hidden": hidden, "d_out": d_out}
    configs = _configs(sizes)
    chosen = [mode for mode in MODES if mode == "bare" or mode in modes]
    _check(modes, rounds, seconds, precision, accelerator)
    rows = registry.select(list(tiers))
    from layerlab.recording import picture_path, recorded
    from layerlab.tracking import Store

    store = Store(tracking_uri)
    store.refuse_deleted(experiment)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    report = BenchReport({}, now, rounds, configs)

    def work(record: RunRecord) -> None:
        with StopSignals() as stop, ExitStack() as stack:
            run = _Bench(rows, chosen, rounds, seconds, seed, observer, stop, stack)
            run.begin(precision, accelerator)
            for index, config in enumerate(configs):
                run.measure(config)
                record.log_metrics(index, _metrics(config, single=len(configs) == 1))
            report.machine = run.machine
        from layerlab.benchmarking.picture import draw

        if any(config.rows for config in configs):
            path = picture_path("benches", f"bench-{record.run_id[:8]}")
            draw(path, report)
            report.picture = str(path)

    recorded(
        store,
        report,
        work,
        kind="bench",
        name=f"bench {', '.join(row.selector for row in rows)}"[:200],
        experiment=experiment,
        params={
            **{key: ",".join(map(str, values)) for key, values in sizes.items()},
            **{"tiers": ", ".join(row.selector for row in rows), "rounds": str(rounds)},
            **{"seconds": str(seconds), "precision": precision, "accelerator": accelerator},
        },
        tags={"layerlab.tiers": ", ".join(row.selector for row in rows)},
    )
    return report


class _Bench:
    """The workers, and the rounds."""

    def __init__(
        self,
        rows: list[TierRow],
        modes: list[str],
        rounds: int,
        seconds: float,
        seed: int,
        observer: Observer,
        stop: StopSignals,
        stack: ExitStack,
    ) -> None:
        self._rows, self._modes, self._rounds, self._seconds = rows, modes, rounds, seconds
        self._seed, self._observer, self._stop = seed, observer, stop
        self._workers = {row.selector: stack.enter_context(_Worker(row)) for row in rows}
        self._proofs: dict[str, str] = {}
        self._refused: dict[str, str] = {}
        self.machine: dict[str, Any] = {}

    def begin(self, precision: str, accelerator: str) -> None:
        """Starts every worker and has it prove its tier."""
        for name, worker in self._workers.items():
            self._stop.check()
            self._observer.stage(f"proving {name}")
            try:
                worker.ask("begin", name=name, precision=precision, accelerator=accelerator)
                proof = worker.ask("prove")
            except Refused as reason:
                self._refused[name] = str(reason)
                continue
            if proof["ok"]:
                self._proofs[name] = proof["said"]
            else:
                self._refused[name] = f"fails its proof: {proof['said']}"

    def measure(self, config: Config) -> None:
        """All rounds of all tiers on one problem."""
        config.refused |= self._refused
        running = {name: worker for name, worker in self._workers.items() if name in self._proofs}
        sizes = {"n": config.batch_size, "d_in": config.d_in, "hidden": config.hidden, "d_out": config.d_out}
        paces: dict[str, dict[str, float]] = {}
        for name, worker in running.items():
            self._stop.check()
            self._observer.stage(f"{config.label}: warming up {name}")
            try:
                paces[name] = worker.ask("prepare", **sizes, seed=self._seed)
            except Refused as reason:
                config.refused[name] = str(reason)
        times: dict[str, dict[str, list[float]]] = {
            name: {mode: [] for mode in ("floor", *self._modes)} for name in paces
        }
        self._observer.started(config.label, self._rounds)
        for number in range(self._rounds):
            self._round(number, config, paces, times)
            self._observer.advanced(number + 1, float("nan"))
        for row in self._rows:
            name = row.selector
            if name in times and name not in config.refused:
                config.rows.append(self._row(row, config, paces[name]["first_step"], times[name]))

    def _round(
        self,
        number: int,
        config: Config,
        paces: dict[str, dict[str, float]],
        times: dict[str, dict[str, list[float]]],
    ) -> None:
        """One round of every mode; another tier begins each time."""
        names = [name for name in times if name not in config.refused]
        turned = names[number % len(names) :] + names[: number % len(names)] if names else []
        for mode in ("floor", *self._modes):
            for name in turned:
                if name in config.refused:
                    continue
                self._stop.check()
                longer = _TRAINERS_TIMES if mode in ("lightning", "tracked") else 1
                steps = round(longer * self._seconds / paces[name]["step"])
                steps = max(_FEWEST_STEPS, min(steps, _MOST_STEPS))
                try:
                    answer = self._workers[name].ask(mode, steps=steps)
                except Refused as reason:
                    config.refused[name] = str(reason)
                    continue
                if answer.get("fault"):
                    config.refused[name] = f"fails its audit ({mode}): {answer['fault']}"
                    continue
                times[name][mode].append(answer["step"])

    def _row(self, row: TierRow, config: Config, first: float, times: dict[str, list[float]]) -> Row:
        facts = self._workers[row.selector].ask("facts")
        self.machine = facts["machine"]
        timings = {mode: Timing.of(times[mode]) for mode in self._modes}
        floor = Timing.of(times["floor"])
        return Row(
            tier=row.selector,
            distribution=f"{row.distribution} {row.version}",
            timings=timings,
            first_step=first,
            gflops=config.operations / timings["bare"].median / 1e9,
            floor_share=floor.median / timings["bare"].median,
            peak_mb=facts["peak_mb"],
            proof=f"{self._proofs[row.selector]}; every round audited",
        )


class _Worker:
    """The coordinator's end of a worker process."""

    def __init__(self, row: TierRow) -> None:
        self._row = row

    def __enter__(self) -> _Worker:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "layerlab.benchmarking.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Asks, and waits for the answer.

        Raises:
            Refused: The worker raised, or is gone.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise Refused(f"its process ended in '{what}' with code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Refused(f"{what}: {answer['error']}")
        return answer


def _configs(sizes: dict[str, Sequence[int]]) -> list[Config]:
    for key, values in sizes.items():
        if not values or any(value < 1 for value in values):
            raise SpecError(f"{key}: sizes should be at least 1", hint=f"--{key.replace('_', '-')} 64,4096")
    n, d_in, hidden, d_out = (dict.fromkeys(values) for values in sizes.values())
    return [Config(a, b, c, d) for a in n for b in d_in for c in hidden for d in d_out]


def _check(modes: Sequence[str], rounds: int, seconds: float, precision: str, accelerator: str) -> None:
    for mode in modes:
        if mode not in MODES:
            raise SpecError(f"no mode is called '{one_line(mode)}'", hint=did_you_mean(mode, MODES))
    if rounds < 1:
        raise SpecError(f"rounds: should be at least 1, got {rounds}")
    if not 0 < seconds <= 60:
        raise SpecError(f"seconds: should be above 0 and at most 60, got {seconds:g}")
    if precision not in ("32-true", "64-true"):
        raise SpecError(f"precision: should be 32-true or 64-true, got '{one_line(precision)}'")
    if accelerator not in ("cpu", "gpu"):
        raise SpecError(f"accelerator: should be cpu or gpu, got '{one_line(accelerator)}'")


def _metrics(config: Config, *, single: bool) -> dict[str, float]:
    """What MLflow plots: microseconds a step, by tier and mode; of a sweep, by problem too."""
    prefix = "" if single else f"{config.label}/"
    metrics = {}
    for row in config.rows:
        for mode, timing in row.timings.items():
            metrics[f"{prefix}{row.tier}/{mode}_us"] = timing.median * 1e6
        metrics[f"{prefix}{row.tier}/floor_share"] = row.floor_share
    return metrics
