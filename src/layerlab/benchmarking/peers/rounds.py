"""The coordinator's side of the peers: who is there, and their part of every round."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from layerlab.benchmarking.peers import EXTRA, PEERS
from layerlab.benchmarking.problem import most_steps
from layerlab.benchmarking.processes import Refused, WorkerProcess
from layerlab.benchmarking.report import PeerRow, Timing
from layerlab.benchmarking.seeds import seed_of

if TYPE_CHECKING:
    from contextlib import ExitStack

    from layerlab.benchmarking.report import BenchReport, Config
    from layerlab.report import Observer
    from layerlab.signals import StopSignals
    from layerlab.tier import Precision

WORKER = "layerlab.benchmarking.peers.worker"
# The tier that does the same job with the same module; what a peer takes is told as a multiple of it.
OURS = "custom-module"
_FEWEST_STEPS = 20


class PeerRounds:
    """The peers' workers and times.

    Args:
        report: Is told who is not installed.
        seconds: About how long a round of a peer is.
        seed: What problems are drawn from.
        observer: Told what happens.
        stop: Asked before every question.
        stack: Ends the processes.
    """

    def __init__(
        self,
        report: BenchReport,
        *,
        seconds: float,
        seed: int,
        observer: Observer,
        stop: StopSignals,
        stack: ExitStack,
    ) -> None:
        self._report, self._seconds, self._seed = report, seconds, seed
        self._observer, self._stop = observer, stop
        # Before the workers, so that it is removed after they are gone.
        self._folder = stack.enter_context(
            TemporaryDirectory(prefix="layerlab-peers-", ignore_cleanup_errors=True)
        )
        self._workers = {name: stack.enter_context(WorkerProcess(WORKER, check=stop.check)) for name in PEERS}
        self._installed: dict[str, str] = {}
        self._refused: dict[str, str] = {}
        self._paces: dict[tuple[int, ...], dict[str, float]] = {}
        self._times: dict[tuple[int, ...], dict[str, list[float]]] = {}

    def begin(self, precision: Precision, accelerator: str) -> None:
        """Finds out who is installed."""
        self._about = {"precision": precision, "accelerator": accelerator}
        for name in self._workers:
            self._stop.check()
            self._observer.stage(f"starting {name}")
            with suppress(Refused):
                self._begin(name)

    def _begin(self, name: str) -> None:
        folder = str(Path(self._folder, name))
        try:
            answer = self._workers[name].ask("begin", name=name, folder=folder, **self._about)
        except Refused as reason:
            self._refused[name] = str(reason)
            raise
        if answer["installed"] is None:
            self._report.peers_missing[name] = EXTRA
        else:
            self._installed[name] = answer["installed"]

    def prepare(self, config: Config) -> None:
        """Gives them a problem."""
        config.peers_refused |= self._refused
        paces, times = self._paces.setdefault(config.sizes, {}), self._times.setdefault(config.sizes, {})
        for name in self._installed:
            self._observer.stage(f"{config.label}: warming up {name}")
            pace = self._time(config, name, steps=_FEWEST_STEPS, seed=seed_of(self._seed))
            if pace is not None:
                paces[name], times[name] = pace, []

    def round(self, number: int, config: Config) -> None:
        """One round of each; another one begins each time."""
        paces, times = self._paces[config.sizes], self._times[config.sizes]
        names = [name for name in times if name not in config.peers_refused]
        turned = names[number % len(names) :] + names[: number % len(names)] if names else []
        for name in turned:
            most = most_steps(config.sizes, "32-true")
            steps = max(_FEWEST_STEPS, min(round(self._seconds / paces[name]), most))
            step = self._time(config, name, steps=steps, seed=seed_of(self._seed, number, PEERS[name].mode))
            if step is not None:
                times[name].append(step)

    def end(self, config: Config, rounds: int) -> None:
        """Writes their rows, of so many rounds, beside those of the tiers."""
        for name, reason in self._refused.items():  # some of them after their rounds here
            config.peers_refused.setdefault(name, reason)
        ours = next((row.timings for row in config.rows if row.tier == OURS), {})
        for name, times in self._times[config.sizes].items():
            if name in config.peers_refused:
                continue
            mode, timing = PEERS[name].mode, Timing.of(times[:rounds])
            over = timing.over(ours[mode]) if mode in ours else None
            audit = "losses and parameters of every round followed the oracle's"
            ratio, ends = (None, None) if over is None else (over.median, (over.low, over.high))
            config.peers.append(PeerRow(name, self._installed[name], mode, timing, ratio, ends, audit))

    def _time(self, config: Config, name: str, *, steps: int, seed: int) -> float | None:
        self._stop.check()
        worker = self._workers[name]
        try:
            if name in self._refused:
                raise Refused(self._refused[name])
            if worker.ended:  # at another problem
                worker.restart()
                self._begin(name)
            answer = worker.ask("time", sizes=config.sizes, steps=steps, seed=seed)
        except Refused as reason:
            config.peers_refused[name] = str(reason)
            return None
        if answer["fault"]:
            config.peers_refused[name] = f"fails its audit ({PEERS[name].mode}): {answer['fault']}"
            return None
        step: float = answer["step"]
        return step
