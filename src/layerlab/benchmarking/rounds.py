"""The rounds of a bench: the workers of the tiers, what they are asked, and the rows that come of it."""

from __future__ import annotations

import statistics
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from layerlab.benchmarking.against import other_of
from layerlab.benchmarking.processes import Refused, WorkerProcess
from layerlab.benchmarking.report import FEWEST_ROUNDS, Row, Timing, interval_label
from layerlab.benchmarking.seeds import seed_of
from layerlab.errors import Interrupted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack

    from layerlab.benchmarking.peers.rounds import PeerRounds
    from layerlab.benchmarking.report import Config
    from layerlab.registry import TierRow
    from layerlab.report import Observer
    from layerlab.signals import StopSignals
    from layerlab.tier import Precision

WORKER = "layerlab.benchmarking.worker"
# A Trainer's blocks grow to a quarter of a second: a round must hold some of them to show their pace.
TRAINERS_TIMES = 3
# On a CPU a training makes the very steps that its loop beside makes, in the same moments: a round of many of
# them is within some hundredths of 1. One of few may be anything, and not all of them are.
LEAST_TAX = 2 / 3
_FEWEST_STEPS = 20


@dataclass(frozen=True)
class Asked:
    """What is to be measured.

    Attributes:
        rows: The tiers.
        modes: Of "bare", "lightning", "tracked".
        rounds: Rounds of each tier, mode and problem.
        seconds: About how long a round is.
        precision: "32-true" or "64-true".
        accelerator: "cpu" or "gpu".
        seed: What problems are drawn from.
        against: A tier, with whose bare loop every training takes turns too.
    """

    rows: list[TierRow]
    modes: tuple[str, ...]
    rounds: int
    seconds: float
    precision: Precision
    accelerator: str
    seed: int
    against: TierRow | None = None


@dataclass(frozen=True)
class _Taken:
    """One problem, how fast each tier is on it, and what its rounds gave.

    Attributes:
        config: The problem.
        paces: By tier: what its warm-up told.
        times: By tier and mode: the seconds of a step.
        beside: By tier and mode: those of what it is compared with, the bare loop or, of that, the products.
        against: By tier and mode: those of the other tier's bare loop.
        sending: By tier: what of a tracked step is the store's.
        peaks: By tier: the memory of its bare rounds, 10^6 bytes.
    """

    config: Config
    paces: dict[str, dict[str, float]]
    times: dict[str, dict[str, list[float]]]
    beside: dict[str, dict[str, list[float]]]
    against: dict[str, dict[str, list[float]]]
    sending: dict[str, list[float]]
    peaks: dict[str, list[float]]

    def keep(self, rounds: int) -> None:
        """Drops what is of later rounds: one that was broken off has it of some tiers only."""
        by_tier = (*self.times.values(), *self.beside.values(), *self.against.values())
        for by_mode in (*by_tier, self.sending, self.peaks):
            for figures in by_mode.values():
                del figures[rounds:]


class Rounds:
    """The workers, and the rounds.

    Args:
        asked: What is to be measured.
        peers: Measured in the same rounds; None: nobody is.
        observer: Told what happens.
        stop: Asked before every question, and while an answer is waited for.
        stack: Ends the processes.
    """

    def __init__(
        self, asked: Asked, peers: PeerRounds | None, observer: Observer, stop: StopSignals, stack: ExitStack
    ) -> None:
        self._asked, self._peers, self._observer, self._stop = asked, peers, observer, stop
        # Before the workers, so that it is removed after they are gone; their recorders may be slower.
        self._folder = Path(
            stack.enter_context(TemporaryDirectory(prefix="layerlab-bench-", ignore_cleanup_errors=True))
        )
        self._workers = {
            row.selector: stack.enter_context(WorkerProcess(WORKER, check=stop.check)) for row in asked.rows
        }
        self._against = {row.selector: other_of(row, asked.against, asked.accelerator) for row in asked.rows}
        self._stores = {
            row.selector: f"sqlite:///{self._folder}/{number}.db" for number, row in enumerate(asked.rows)
        }
        self._proofs: dict[str, str] = {}
        self._refused: dict[str, str] = {}
        self.machine: dict[str, Any] = {}

    def begin(self) -> None:
        """Starts every worker and has it prove its tier."""
        for name in self._workers:
            with suppress(Refused):
                self._prove(name)
        if self._peers:
            self._peers.begin(self._asked.precision, self._asked.accelerator)

    def _prove(self, name: str) -> None:
        self._stop.check()
        self._observer.stage(f"proving {name}")
        worker, asked = self._workers[name], self._asked
        about = {"store": self._stores[name], "against": self._against[name]}
        about |= {"precision": asked.precision, "accelerator": asked.accelerator}
        try:
            self.machine = worker.ask("begin", name=name, **about)
            proof = worker.ask("prove")
            if not proof["ok"]:
                raise Refused(f"fails its proof: {proof['said']}")
        except Refused as reason:
            self._refused[name] = str(reason)
            raise
        self._proofs[name] = proof["said"]

    def _ask(self, name: str, what: str, **arguments: Any) -> dict[str, Any]:
        """Asks the worker of a tier; where it ended at another problem, a new one that has proven the tier.

        Raises:
            Refused: The worker raised, is gone, or does not answer.
        """
        worker = self._workers[name]
        if name in self._refused:
            raise Refused(self._refused[name])
        if worker.ended:
            worker.restart()
            self._prove(name)
        return worker.ask(what, **arguments)

    def measure(self, configs: Sequence[Config]) -> tuple[int, Interrupted | None]:
        """All rounds of all tiers on all problems.

        The problems of a sweep take turns too: what two of them are compared by are the rounds.

        Returns:
            How many rounds are whole, and what ended them before the last one, if anything did.

        Raises:
            Interrupted: Before the first round was whole.
        """
        sweep = [self._begin(config) for config in configs]
        label = configs[0].label if len(configs) == 1 else f"{len(configs)} problems"
        self._observer.measuring(label, self._asked.rounds)
        whole, stopped = 0, None
        try:
            for number in range(self._asked.rounds):
                for taken in sweep:
                    self._round(number, taken)
                    if self._peers:
                        self._peers.round(number, taken.config)
                whole = number + 1
                self._observer.measured(whole)
        except Interrupted as error:
            if not whole:
                raise
            stopped = error
        for taken in sweep:
            self._end(taken, whole)
        return whole, stopped

    def _begin(self, config: Config) -> _Taken:
        config.refused |= self._refused
        paces = self._warm_up(config)
        modes = self._asked.modes
        if self._peers:
            self._peers.prepare(config)
        times, beside, against = (
            {name: {mode: list[float]() for mode in modes} for name in paces} for _ in range(3)
        )
        sending, peaks = ({name: list[float]() for name in paces} for _ in range(2))
        return _Taken(config, paces, times, beside, against, sending, peaks)

    def _end(self, taken: _Taken, rounds: int) -> None:
        taken.keep(rounds)
        config = taken.config
        for name, reason in self._refused.items():  # some of them after their rounds here
            config.refused.setdefault(name, reason)
        for row in self._asked.rows:
            name = row.selector
            if name in taken.times and name not in config.refused:
                measured = self._row(row, taken)
                fault = self._too_fast(measured)
                if fault is None:
                    config.rows.append(measured)
                else:
                    config.refused[name] = fault
        if self._peers:
            self._peers.end(config, rounds)

    def _too_fast(self, row: Row) -> str | None:
        """What shows that a training did its work in somebody else's time, or that the other one idled."""
        # On CUDA a step may be replayed in a training, and is then faster.
        if self._asked.accelerator != "cpu":
            return None
        for mode in row.beside:
            sides = {"its loop beside": row.tax(mode)}
            # It could work ahead for both in the turns of the other tier. The bare loop alone is of other
            # seconds, in which one round in thirty is as far off; six of six are not.
            if row.against and len(row.timings["bare"].rounds) >= FEWEST_ROUNDS:
                sides["the bare loop alone"] = row.timings[mode].over(row.timings["bare"])
            for side, tax in sides.items():
                if tax.high < LEAST_TAX:
                    between = interval_label(len(tax.rounds))
                    return (
                        f"fails its audit ({mode}): a step of the training took {tax.median:.2f} of what the "
                        f"same step took in {side}; the {between} ends at {tax.high:.2f}"
                    )
        return None

    def _warm_up(self, config: Config) -> dict[str, dict[str, float]]:
        paces: dict[str, dict[str, float]] = {}
        for name in self._workers:
            if name in self._refused:
                continue
            self._stop.check()
            self._observer.stage(f"{config.label}: warming up {name}")
            try:
                paces[name] = self._ask(name, "prepare", sizes=config.sizes, seed=seed_of(self._asked.seed))
            except Refused as reason:
                config.refused[name] = str(reason)
        return paces

    def _round(self, number: int, taken: _Taken) -> None:
        """One round of every mode; another tier begins each time.

        All modes of a tier are next to each other, in this order and the next time in the other, and audited
        after all of them. What each is compared with is measured with it: a training takes turns with a bare
        loop of its own (see `turns`), and the bare loop is between two halves of the products.
        """
        config, times = taken.config, taken.times
        names = [name for name in times if name not in config.refused]
        turned = names[number % len(names) :] + names[: number % len(names)] if names else []
        modes = [mode for mode in ("lightning", "tracked", "bare") if mode in self._asked.modes]
        for name in turned:
            self._stop.check()
            asked = [
                (mode, self._steps(mode, taken.paces[name]), seed_of(self._asked.seed, number, mode))
                for mode in (modes if number % 2 == 0 else reversed(modes))
            ]
            try:
                pace = taken.paces[name]["step"]
                answer = self._ask(name, "round", sizes=config.sizes, asked=asked, pace=pace)
            except Refused as reason:
                config.refused[name] = str(reason)
                continue
            for mode, measured in answer["modes"].items():
                if measured["fault"]:
                    config.refused.setdefault(name, f"fails its audit ({mode}): {measured['fault']}")
                times[name][mode].append(measured["step"])
                taken.beside[name][mode].append(measured["beside"])
                if measured["against"] is not None:
                    taken.against[name][mode].append(measured["against"])
                if measured["sending"] is not None:
                    taken.sending[name].append(measured["sending"])
            taken.peaks[name].append(answer["peak_mb"])

    def _steps(self, mode: str, pace: dict[str, float]) -> int:
        longer = TRAINERS_TIMES if mode in ("lightning", "tracked") else 1
        steps = round(longer * self._asked.seconds / pace["step"])
        return max(_FEWEST_STEPS, min(steps, int(pace["most_steps"])))

    def _row(self, row: TierRow, taken: _Taken) -> Row:
        name = row.selector
        pace, times = taken.paces[name], taken.times[name]
        timings = {mode: Timing.of(times[mode]) for mode in self._asked.modes}
        beside = {mode: Timing.of(rounds) for mode, rounds in taken.beside[name].items()}
        floor = beside.pop("bare")
        return Row(
            tier=name,
            distribution=f"{row.distribution} {row.version}",
            timings=timings,
            beside=beside,
            against={mode: Timing.of(rounds) for mode, rounds in taken.against[name].items() if rounds},
            first_step=pace["first_step"],
            once=pace["once"],
            gflops=taken.config.operations / timings["bare"].median / 1e9,
            floor=floor,
            floor_share=floor.over(timings["bare"]).median,
            peak_mb=statistics.median(taken.peaks[name]),
            sending=statistics.median(taken.sending[name]) if taken.sending[name] else None,
            proof=f"{self._proofs[name]}; every round audited",
        )
