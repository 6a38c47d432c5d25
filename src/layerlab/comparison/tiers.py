"""Tiers against each other: the step-locked proof with a tier in the oracle's place.

Every tier trains on its own, from the same first weights and on the same batches. At every step of two of
them each is also built anew from the other's parameters, makes the same step, and is compared with what the
other made of it. So rounding never accumulates: two correct tiers differ by no more than the roundings of two
steps, which `layerlab.rounding` bounds. And it is the tier that has trained so far that is compared, so that
a mistake that begins late is seen.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from layerlab import registry
from layerlab.batches import Batches
from layerlab.comparison.picture import draw
from layerlab.comparison.report import CompareReport, Pair
from layerlab.conformance.lockstep import BACKWARD, Comparison, Step, as_float64, autocast, take_step
from layerlab.errors import SpecError, TierError
from layerlab.folder import refuse_unwritable
from layerlab.planning import plan
from layerlab.provenance import describe_dataset
from layerlab.recording import picture_path, recorded
from layerlab.reference import Adam, gradients, initial_params
from layerlab.report import Observer
from layerlab.rounding import AdamBound, Roundoff, bound_sgd, bound_step
from layerlab.signals import StopSignals
from layerlab.spec import build_spec
from layerlab.tier import Params
from layerlab.tracking import Recorder

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from layerlab.data.dataset import Prepared
    from layerlab.planning import Job
    from layerlab.rounding import Sound
    from layerlab.spec import ExperimentSpec
    from layerlab.tier import Array, Tier
    from layerlab.tracking import Record

# Losses leave for the record so many at a time.
_BLOCK = 100


def compare(
    *,
    config: str | Path | None = None,
    settings: Iterable[str] = (),
    tracking_uri: str | None = None,
    observer: Observer | None = None,
    **flags: Any,
) -> CompareReport:
    """Trains tiers in lockstep from the same start, and says whether and where they part.

    What the flags leave open, learning rate, first weights and biases, is the first tier's, for all of them.

    Args:
        config: A YAML file with an experiment.
        settings: Dotted assignments over the file, such as ``"train.lr=0.01"``.
        tracking_uri: The MLflow store; None: ``MLFLOW_TRACKING_URI``, or ``sqlite:///mlflow.db``.
        observer: Told what happens while it happens.
        **flags: Whatever ``layerlab run`` takes as flags, by the same names with underscores; ``plugin`` is a
            list of two tiers or more.

    Raises:
        InputError: It cannot be done as asked; nothing was recorded.
        TierError: A tier raised; the MLflow run is FAILED.
        Interrupted: SIGINT or SIGTERM; the run is KILLED, or FINISHED and in the ``report`` if all was done.
    """
    spec = build_spec(config=config, settings=settings, flags=flags)
    refuse_unwritable()
    observer = observer or Observer()
    with StopSignals() as stop:
        jobs, prepared = _plan(spec, observer)
        stop.check()
        lockstep = _Lockstep(jobs, prepared)
        observer.stage("opening the tracking store")
        names = lockstep.report.tiers
        first = jobs[0].spec

        def work(record: Record) -> None:
            lockstep.train(record, observer, stop)
            path = picture_path("comparisons", f"{'-'.join(names)[:80]}-{record.run_id[:8]}")
            lockstep.picture(path)
            record.set_tags({"layerlab.agree": str(lockstep.report.agree).lower()})

        whole = spec.model_copy(update={"net": first.net, "data": first.data, "train": first.train})
        with Recorder() as recorder:
            recorder.open(tracking_uri, spec.experiment)
            recorder.opened(stop.check)
            recorded(
                recorder,
                lockstep.report,
                work,
                stop=stop,
                kind="comparison",
                name=spec.name or f"compare {', '.join(names)}",
                experiment=first.experiment,
                params={**first.flat(), "plugins": ", ".join(names)},
                tags={"layerlab.tiers": ", ".join(names)},
                dataset=describe_dataset(prepared.dataset, first.data.target),
                spec_yaml=whole.as_yaml(),
            )
    return lockstep.report


def _plan(spec: ExperimentSpec, observer: Observer) -> tuple[list[Job], Prepared]:
    """One job a tier, all with the leader's learning rate, first weights and biases.

    Raises:
        InputError: As `compare`.
    """
    rows = registry.select(spec.plugins)
    if len(rows) < 2:
        raise SpecError(
            f"there is nothing to compare '{rows[0].selector}' with", hint="--plugin A --plugin B: two tiers"
        )
    recipe = registry.load(rows[0]).recipe
    bias = recipe.bias if spec.net.bias is None else spec.net.bias
    net = spec.net.model_copy(update={"init": spec.net.init or recipe.init, "bias": bias})
    train = spec.train.model_copy(update={"lr": spec.train.lr or recipe.lr})
    jobs, prepared = plan(spec.model_copy(update={"net": net, "train": train}), observer.stage)
    leader = jobs[0].spec
    batch = leader.train.batch_size or 0
    n_in, n_out = prepared.dataset.x.shape[1], prepared.dataset.y.shape[1]
    longest = max(batch * n_out, n_in, leader.net.hidden)
    if longest * Roundoff.of(leader.train.precision).sums > 0.01:
        raise SpecError(
            f"sums of {longest} terms leave nothing to compare in {leader.train.precision}",
            hint="a smaller --batch-size, or --precision 64-true",
        )
    return jobs, prepared


class _Trained:
    """A tier that trains on its own, and what its last step was."""

    def __init__(self, job: Job, lockstep: _Lockstep) -> None:
        self.job, self._lockstep = job, lockstep
        self.name = job.row.selector
        self.split = job.tier_class.splits_step()
        self.losses: list[float] = []
        self._tier = lockstep.build(job, lockstep.start)
        self.after = self._tier.params()
        self.before = self.after
        self.step = Step(float("nan"))
        self.exact = as_float64(self.after)
        self.sound: Sound | None = None

    def train(self, x: Any, y: Any) -> None:
        """Makes a step."""
        self.before = self.after
        self.step = self._lockstep.step(self.job, self._tier, x, y, split=self.split)
        self.after = self._tier.params()
        self.losses.append(self.step.loss)
        self.exact = as_float64(self.before)
        self.sound = None

    def bounds(self, x: Array, y: Array) -> Sound:
        """The bounds of the step that was made."""
        if self.sound is None:
            self.sound = bound_step(self.exact, x, y, self._lockstep.r)
        return self.sound


class _Comparing:
    """Two tiers, each built at every step from the other's parameters."""

    def __init__(self, leader: _Trained, follower: _Trained, lockstep: _Lockstep) -> None:
        self.leader, self.follower, self._lockstep = leader, follower, lockstep
        self.pair = _pair(leader.job, follower.job)
        self.seen = Comparison()
        self.shares: list[float] = []
        # One memory for each of the two that train.
        self._adam = {id(t): AdamBound(Adam(lockstep.lr), lockstep.r) for t in (leader, follower)}

    def compare(self, number: int, x: Any, y: Any) -> None:
        """Compares the step that both have made; after they have parted, nothing."""
        if self.seen.part is not None:
            return
        worst, self.seen.worst = self.seen.worst, 0.0
        self._compare(number, self.leader, self.follower.job, x, y, swapped=False)
        self._compare(number, self.follower, self.leader.job, x, y, swapped=True)
        self.shares.append(self.seen.worst)
        self.seen.worst = max(worst, self.seen.worst)
        if self.seen.end_step():
            self.pair.steps = number + 1

    def _compare(self, number: int, trained: _Trained, other: Job, x: Any, y: Any, *, swapped: bool) -> None:
        """Compares a step that was made with that of another tier from the same parameters.

        Args:
            number: The step.
            trained: The tier that made it.
            other: The other one.
            x: Inputs.
            y: Targets.
            swapped: Whether it is the follower that trains here.
        """
        compared, run = self.pair.compared, self._lockstep
        x64, y64 = x.numpy().astype(np.float64), y.numpy().astype(np.float64)
        tier = run.build(other, trained.before)
        made, split = trained.step, other.tier_class.splits_step()
        anew = run.step(other, tier, x, y, split=split)
        sound = trained.bounds(x64, y64)

        def add(tensor: str, made: Any, anew: Any, bound: Any, before: Any = 0.0) -> None:
            leads, follows = (anew, made) if swapped else (made, anew)
            self.seen.compare(number, tensor, follows, leads, bound, before=before)

        if "y_pred" in compared:
            add("y_pred", made.y_pred, anew.y_pred, 2 * sound.y_pred)
        add("loss", made.loss, anew.loss, 2 * sound.loss)
        if made.gradients is not None and anew.gradients is not None:
            for name in BACKWARD:
                if name in made.gradients:
                    bound = 2 * getattr(sound.gradients, name)
                    add(f"grad_{name}", made.gradients[name], anew.gradients.get(name), bound)
        if "parameters" not in compared:
            return
        if trained.job.tier_class.recipe.optimizer == "adam":
            # It remembers and the tier built anew does not: Adam itself, along the other's gradients.
            grads = gradients(trained.exact, x64, y64)[1]
            if anew.gradients is not None:
                grads = Params(**{name: g.astype(np.float64) for name, g in anew.gradients.items()})
            twice = sound.gradients.map(lambda e: 2 * e)
            after, allowed = self._adam[id(trained)].update(trained.exact, grads, twice)
        else:
            after = tier.params()
            once = bound_sgd(trained.exact, sound.sizes, sound.gradients, lr=run.lr, terms=len(x), r=run.r)
            allowed = once.map(lambda e: 2 * e)
        for name in BACKWARD:
            if getattr(after, name) is not None:
                ends = (getattr(params, name) for params in (trained.after, after, allowed, trained.exact))
                add(name, *ends)


class _Lockstep:
    """The tiers, the leader first, on the same batches, and a comparison with it for each of the others."""

    def __init__(self, jobs: list[Job], prepared: Prepared) -> None:
        self.jobs, self.spec = jobs, jobs[0].spec
        train, net = self.spec.train, self.spec.net
        assert train.batch_size is not None
        assert train.lr is not None
        assert net.init is not None
        self.lr, self.r = train.lr, Roundoff.of(train.precision)
        self.dtype = torch.float64 if train.precision == "64-true" else torch.float32
        host = np.float64 if train.precision == "64-true" else np.float32
        x, y = prepared.arrays(prepared.train)
        self._batches = Batches(
            *(torch.as_tensor(a).to(self.dtype) for a in (x, y)), batch_size=train.batch_size, seed=train.seed
        )
        self._steps = train.steps or (train.epochs or 0) * math.ceil(len(x) / train.batch_size)
        start = initial_params(
            x.shape[1], net.hidden, y.shape[1], init=net.init, bias=bool(net.bias), seed=train.seed
        )
        self.start = start.map(lambda p: p.astype(host))
        self.report = CompareReport([job.row.selector for job in jobs])
        self._trained: list[_Trained] = []
        self._comparing: list[_Comparing] = []

    def train(self, record: Record, observer: Observer, stop: StopSignals) -> None:
        """Makes all steps, and records losses and differences.

        Raises:
            TierError: A tier raised.
            Interrupted: A signal came.
        """
        self._trained = [_Trained(job, self) for job in self.jobs]
        leader, *others = self._trained
        self._comparing = [_Comparing(leader, other, self) for other in others]
        self.report.pairs = [comparing.pair for comparing in self._comparing]
        observer.started(" and ".join(self.report.tiers), self._steps)
        for number in range(self._steps):
            stop.check()
            ((x, y),) = self._batches.block(range(number, number + 1))
            for trained in self._trained:
                trained.train(x, y)
            with np.errstate(over="ignore", invalid="ignore"):  # what runs away is judged, not warned of
                for comparing in self._comparing:
                    comparing.compare(number, x, y)
            self.report.steps = number + 1
            if self.report.steps % _BLOCK == 0 or self.report.steps == self._steps:
                self._record(record, number // _BLOCK * _BLOCK)
                observer.advanced(self.report.steps, leader.losses[-1])
        for comparing in self._comparing:
            pair, seen = comparing.pair, comparing.seen
            pair.worst, pair.resolution = seen.worst, max(seen.resolution.values())
            pair.part, pair.said = (vars(seen.part), str(seen.part)) if seen.part else (None, "")
        self.report.final_losses = {trained.name: trained.losses[-1] for trained in self._trained}

    def picture(self, path: Path) -> None:
        """Draws the curves."""
        draw(
            path,
            {trained.name: (range(len(trained.losses)), trained.losses) for trained in self._trained},
            {comparing.follower.name: comparing.shares for comparing in self._comparing},
            title=f"{', '.join(self.report.tiers)}: from the same start, on the same batches",
        )
        self.report.picture = str(path)

    def build(self, job: Job, params: Params) -> Tier:
        """A tier with given parameters.

        Raises:
            TierError: It raised.
        """
        try:
            return job.tier_class(params, lr=self.lr, device=torch.device(job.accelerator), dtype=self.dtype)
        except (Exception, SystemExit) as error:
            reason = f"{type(error).__name__}: {error}"
            raise TierError(f"tier '{job.row.name}' cannot be built: {reason}") from error

    def step(self, job: Job, tier: Tier, x: Any, y: Any, *, split: bool) -> Step:
        """One step of a tier.

        Raises:
            TierError: It raised.
        """
        device = torch.device(job.accelerator)
        try:
            with autocast(self.spec.train.precision, device):
                return take_step(tier, x.to(device), y.to(device), split=split)
        except (Exception, SystemExit) as error:
            raise TierError(f"tier '{job.row.name}': {type(error).__name__}: {error}") from error

    def _record(self, record: Record, first: int) -> None:
        series = {f"loss/{trained.name}": trained.losses for trained in self._trained}
        series |= {f"share_of_bound/{c.follower.name}": c.shares for c in self._comparing}
        for key, values in series.items():
            if values[first:]:
                record.log_series(key, first, values[first:])


def _pair(leader: Job, follower: Job) -> Pair:
    """What of two tiers can be compared, and what not and why."""
    pair = Pair(leader.row.selector, follower.row.selector, ["loss"])
    unsplit = [j.row.selector for j in (leader, follower) if not j.tier_class.splits_step()]
    if unsplit:
        pair.notes.append(f"gradients are not compared: the step is not split by {' and '.join(unsplit)}")
    else:
        pair.compared += ["y_pred", "gradients"]
    optimizers = leader.tier_class.recipe.optimizer, follower.tier_class.recipe.optimizer
    if optimizers[0] != optimizers[1]:
        pair.notes.append(f"updates are not compared: {optimizers[0]} against {optimizers[1]}")
    elif optimizers[0] not in ("sgd", "adam"):
        pair.notes.append(f"updates are not compared: no bound is known for {optimizers[0]}")
    else:
        pair.compared.append("parameters")
        if optimizers[0] == "adam":
            pair.notes.append("Adam remembers: updates are compared with its rule in float64")
    return pair
