"""Who asks whom, when: one worker a tier, one round after the other, all tiers in turn."""

from __future__ import annotations

import datetime
import secrets
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from layerlab import registry
from layerlab.benchmarking import against as others
from layerlab.benchmarking.peers.rounds import PeerRounds
from layerlab.benchmarking.report import MODES, BenchReport, Config
from layerlab.benchmarking.rounds import TRAINERS_TIMES, Asked, Rounds
from layerlab.errors import JournalError, SpecError, did_you_mean, one_line
from layerlab.folder import refuse_unwritable
from layerlab.recording import picture_path, recorded
from layerlab.report import Observer
from layerlab.signals import StopSignals
from layerlab.tracking import Recorder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerlab.benchmarking.report import Timing
    from layerlab.errors import Interrupted
    from layerlab.tier import Precision
    from layerlab.tracking import Record

ROUNDS = 9
SECONDS = 0.2
# What the tags of every run have already.
_VERSIONS = ("python", "torch", "numpy")


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
    precision: Precision = "32-true",
    accelerator: str = "cpu",
    seed: int | None = None,
    against: str | None = None,
    peers: bool = False,
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
        seconds: About how long a round is; one under a Trainer is three times as long.
        precision: "32-true" or "64-true".
        accelerator: "cpu" or "gpu".
        seed: What problems are drawn from; None: one that nobody can know before, which the report tells.
        against: A tier, with whose bare loop every training takes turns too: how many times as long a step
            takes is then told of the same moments.
        peers: Also measure what people would otherwise write: see `layerlab.benchmarking.peers`.
        experiment: The MLflow experiment that keeps the bench.
        tracking_uri: The MLflow store; None: ``MLFLOW_TRACKING_URI``, or ``sqlite:///mlflow.db``.
        observer: Told what happens while it happens.

    Raises:
        InputError: It cannot be done as asked; nothing was recorded.
        Interrupted: SIGINT or SIGTERM; the MLflow run is KILLED, or as ever where all rounds were over.
            Where there are whole rounds, they are in it, and in the ``report`` of the error.
    """
    configs = _configs({"batch_size": batch_size, "d_in": d_in, "hidden": hidden, "d_out": d_out})
    drawn_from = secrets.randbelow(1 << 32) if seed is None else seed
    _check(modes, rounds, seconds, precision, accelerator, drawn_from)
    rows = registry.select(list(tiers))
    measured = tuple(mode for mode in MODES if mode == "bare" or mode in modes)
    other = None if against is None else others.chosen(against, rows, measured, accelerator)
    asked = Asked(rows, measured, rounds, seconds, precision, accelerator, drawn_from, other)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    selector = "" if other is None else other.selector
    report = BenchReport({}, now, rounds, seconds, precision, configs, selector, drawn_from)
    with StopSignals() as stop, Recorder() as recorder:
        recorder.open(tracking_uri, experiment)
        recorder.opened(stop.check)
        _record(recorder, report, asked, experiment, stop, peers=peers, observer=observer or Observer())
    return report


def _record(
    recorder: Recorder,
    report: BenchReport,
    asked: Asked,
    experiment: str,
    stop: StopSignals,
    *,
    peers: bool,
    observer: Observer,
) -> None:
    """Measures within an MLflow run."""

    def work(record: Record) -> str | None:
        with ExitStack() as closing:
            stopped = _measure(report, asked, stop, closing, peers=peers, observer=observer)
            _draw(record, report)
            if stopped is not None:
                with suppress(JournalError):  # `recorded` says so
                    _log(record, report)
                raise stopped
            _log(record, report)
        return _nothing(report)

    configs, names = report.configs, ", ".join(row.selector for row in asked.rows)
    sizes = {
        key: ",".join(str(value) for value in dict.fromkeys(getattr(config, key) for config in configs))
        for key in ("batch_size", "d_in", "hidden", "d_out")
    }
    recorded(
        recorder,
        report,
        work,
        stop=stop,
        kind="bench",
        name=f"bench {names}"[:200],
        experiment=experiment,
        params={
            **sizes,
            **{"tiers": names, "rounds": str(asked.rounds), "seconds": str(asked.seconds)},
            **{"precision": asked.precision, "accelerator": asked.accelerator, "peers": str(peers)},
            "seed": str(asked.seed),
            **({} if asked.against is None else {"against": asked.against.selector}),
        },
        tags={"layerlab.tiers": names},
    )


def _measure(
    report: BenchReport,
    asked: Asked,
    stop: StopSignals,
    closing: ExitStack,
    *,
    peers: bool,
    observer: Observer,
) -> Interrupted | None:
    """All rounds on all problems, into the report; what ended them before the last one, if anything did.

    From then on no signal stops anything until ``closing`` is closed.
    """
    with ExitStack() as stack:
        beside = None
        if peers:
            longer = TRAINERS_TIMES * asked.seconds
            beside = PeerRounds(
                report, seconds=longer, seed=asked.seed, observer=observer, stop=stop, stack=stack
            )
        rounds = Rounds(asked, beside, observer, stop, stack)
        rounds.begin()
        report.rounds, stopped = rounds.measure(report.configs)
        closing.enter_context(stop.held())
        if stopped is not None:
            report.stopped = f"{stopped} after {report.rounds} of {asked.rounds} rounds"
            stopped.report = report
        report.machine = rounds.machine
    return stopped


def _log(record: Record, report: BenchReport) -> None:
    machine = {key: value for key, value in report.machine.items() if key not in _VERSIONS}
    record.set_tags({f"machine.{key}": str(value) for key, value in machine.items()})
    for index, config in enumerate(report.configs):
        record.log_metrics(index, _metrics(config, single=len(report.configs) == 1))
    record.log_metrics(0, {"rounds": report.rounds})


def _nothing(report: BenchReport) -> str | None:
    """Why nobody has a row, or None."""
    if any(config.rows or config.peers for config in report.configs):
        return None
    refused = dict[str, str]()
    for config in report.configs:
        for name, why in config.refused.items():
            refused.setdefault(name, why)
    said = "; ".join(f"{name}: {why}" for name, why in refused.items())
    return f"nothing was measured: {said}"


def _draw(record: Record, report: BenchReport) -> None:
    """Draws the picture; one that cannot be drawn is no reason to lose what was measured."""
    if not any(config.rows for config in report.configs):
        return
    try:
        from layerlab.benchmarking.picture import draw

        path = picture_path("benches", f"bench-{record.run_id[:8]}")
        draw(path, report)
    except Exception as error:  # noqa: BLE001 -- as above
        report.picture_fault = one_line(f"{type(error).__name__}: {error}")
    else:
        report.picture = str(path)


def _configs(sizes: dict[str, Sequence[int]]) -> list[Config]:
    for key, values in sizes.items():
        if not values or any(value < 1 for value in values):
            raise SpecError(f"{key}: sizes should be at least 1", hint=f"--{key.replace('_', '-')} 64,4096")
    n, d_in, hidden, d_out = (dict.fromkeys(values) for values in sizes.values())
    return [Config(a, b, c, d) for a in n for b in d_in for c in hidden for d in d_out]


def _check(
    modes: Sequence[str], rounds: int, seconds: float, precision: str, accelerator: str, seed: int
) -> None:
    refuse_unwritable()
    for mode in modes:
        if mode not in MODES:
            raise SpecError(f"no mode is called '{one_line(mode)}'", hint=did_you_mean(mode, MODES))
    if rounds < 1:
        raise SpecError(f"rounds: should be at least 1, got {rounds}")
    if seed < 0:
        raise SpecError(f"seed: should be 0 or more, got {seed}")
    if not 0 < seconds <= 60:
        raise SpecError(f"seconds: should be above 0 and at most 60, got {seconds:g}")
    if precision not in ("32-true", "64-true"):
        raise SpecError(f"precision: should be 32-true or 64-true, got '{one_line(precision)}'")
    if accelerator not in ("cpu", "gpu"):
        raise SpecError(f"accelerator: should be cpu or gpu, got '{one_line(accelerator)}'")


def _metrics(config: Config, *, single: bool) -> dict[str, float]:
    """What MLflow plots, by tier, of a sweep by problem too: columns of the table, and their intervals."""
    prefix = "" if single else f"{config.label}/"
    metrics: dict[str, float] = {}
    for row in config.rows:
        of_row = {
            "steps_per_second": 1 / row.timings["bare"].median,
            "gflops": row.gflops,
            "floor_share": row.floor_share,
            "once_s": row.once,
            "peak_mb": row.peak_mb,
        }
        if row.sending is not None:
            of_row["sending_us"] = row.sending * 1e6
        for mode, timing in row.timings.items():
            of_row |= _ends(f"{mode}_us", timing, 1e6)
        for mode in row.beside:
            of_row |= _ends(f"{mode}_tax", row.tax(mode))
        for mode in row.against:
            of_row |= _ends(f"{mode}_against", row.tax_against(mode))
        metrics |= {f"{prefix}{row.tier}/{key}": value for key, value in of_row.items()}
    for peer in config.peers:
        of_peer = _ends(f"{peer.mode}_us", peer.timing, 1e6)
        if peer.ratio is not None and peer.ratio_ends is not None:
            low, high = peer.ratio_ends
            of_peer |= {"ratio": peer.ratio, "ratio_low": low, "ratio_high": high}
        metrics |= {f"{prefix}peers/{peer.peer}/{key}": value for key, value in of_peer.items()}
    return metrics


def _ends(name: str, timing: Timing, unit: float = 1.0) -> dict[str, float]:
    """A median and the ends of its interval."""
    ends = {"": timing.median, "_low": timing.low, "_high": timing.high}
    return {f"{name}{end}": value * unit for end, value in ends.items()}
