"""Tiers against each other: the step-locked proof with a tier in the oracle's place.

The first tier leads: it trains. Before every step each of the others is built from the leader's parameters,
makes the step, and is compared with what the leader made of it. So rounding never accumulates, and two
correct tiers differ by no more than the roundings of two steps, which `layerlab.rounding` bounds. Beside that
every tier trains on its own, which gives the loss curves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from layerlab import registry
from layerlab.batches import Batches
from layerlab.comparison.picture import draw
from layerlab.comparison.record import open_store, picture_path, recorded
from layerlab.comparison.report import CompareReport, Pair
from layerlab.conformance.lockstep import BACKWARD, Comparison, as_float64, autocast, take_step
from layerlab.errors import SpecError, TierError
from layerlab.planning import plan
from layerlab.provenance import describe_dataset
from layerlab.reference import Adam, gradients, initial_params
from layerlab.report import Observer
from layerlab.rounding import AdamBound, Roundoff, bound_sgd, bound_step
from layerlab.signals import StopSignals
from layerlab.spec import build_spec

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from layerlab.conformance.lockstep import Step
    from layerlab.data.dataset import Prepared
    from layerlab.planning import Job
    from layerlab.rounding import Sound
    from layerlab.spec import ExperimentSpec
    from layerlab.tier import Array, Params, Tier
    from layerlab.tracking import RunRecord

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
        Interrupted: SIGINT or SIGTERM; the MLflow run is KILLED.
    """
    spec = build_spec(config=config, settings=settings, flags=flags)
    observer = observer or Observer()
    with StopSignals() as stop:
        jobs, prepared = _plan(spec, observer)
        stop.check()
        lockstep = _Lockstep(jobs, prepared)
        observer.stage("opening the tracking store")
        store = open_store(tracking_uri)
        names = lockstep.report.tiers
        first = jobs[0].spec

        def work(record: RunRecord) -> None:
            lockstep.train(record, observer, stop)
            path = picture_path(f"{'-'.join(names)[:80].replace(':', '-')}-{record.run_id[:8]}")
            lockstep.picture(path)

        dataset = prepared.dataset
        recorded(
            store,
            lockstep.report,
            work,
            name=spec.name or f"compare {', '.join(names)}",
            experiment=first.experiment,
            params={**first.flat(), "plugins": ", ".join(names)},
            tags={"layerlab.tiers": ", ".join(names)},
            dataset=describe_dataset(
                dataset.name,
                dataset.digest,
                dataset.source,
                rows=len(dataset.x),
                n_in=dataset.x.shape[1],
                n_out=dataset.y.shape[1],
                target=first.data.target,
            ),
            spec_yaml=spec.model_copy(
                update={"net": first.net, "data": first.data, "train": first.train}
            ).as_yaml(),
        )
    return lockstep.report


def _plan(spec: ExperimentSpec, observer: Observer) -> tuple[list[Job], Prepared]:
    """One job a tier, all with the leader's learning rate, first weights and biases.

    Raises:
        InputError: As `compare`.
    """
    rows = registry.select(spec.plugins)
    if len(rows) < 2:
        raise SpecError(f"there is nothing to compare '{rows[0].selector}' with", hint="give --plugin twice")
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


@dataclass
class _Follower:
    """A tier that starts every step where the leader does."""

    job: Job
    pair: Pair
    seen: Comparison = field(default_factory=Comparison)
    shares: list[float] = field(default_factory=list)


class _Lockstep:
    """The tiers, the leader first; the same batches; a comparison a follower."""

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
        self.batches = Batches(
            *(torch.as_tensor(a).to(self.dtype) for a in (x, y)), batch_size=train.batch_size, seed=train.seed
        )
        self.steps = train.steps or (train.epochs or 0) * math.ceil(len(x) / train.batch_size)
        start = initial_params(
            x.shape[1], net.hidden, y.shape[1], init=net.init, bias=bool(net.bias), seed=train.seed
        )
        self.start = start.map(lambda p: p.astype(host))
        self.report = CompareReport([job.row.selector for job in jobs])
        self.curves: dict[str, list[float]] = {name: [] for name in self.report.tiers}
        self.followers = [_Follower(job, _pair(jobs[0], job)) for job in jobs[1:]]
        self.report.pairs = [follower.pair for follower in self.followers]

    def train(self, record: RunRecord, observer: Observer, stop: StopSignals) -> None:
        """Makes all steps, and records losses and differences."""
        tiers = [self._build(job, self.start) for job in self.jobs]
        observer.started(" and ".join(self.report.tiers), self.steps)
        for number in range(self.steps):
            stop.check()
            ((x, y),) = self.batches.block(range(number, number + 1))
            before = tiers[0].params()
            lead = self._step(self.jobs[0], tiers[0], x, y, split=self.jobs[0].tier_class.splits_step())
            self.curves[self.report.tiers[0]].append(lead.loss)
            if any(follower.seen.part is None for follower in self.followers):
                self._compare(number, before, lead, tiers[0].params(), x, y)
            for job, tier in zip(self.jobs[1:], tiers[1:], strict=True):
                self.curves[job.row.selector].append(self._step(job, tier, x, y, split=False).loss)
            self.report.steps = number + 1
            if self.report.steps % _BLOCK == 0 or self.report.steps == self.steps:
                self._record(record, number // _BLOCK * _BLOCK)
                observer.advanced(self.report.steps, lead.loss)
        for follower in self.followers:
            pair, seen = follower.pair, follower.seen
            pair.worst = seen.worst
            pair.part, pair.said = (vars(seen.part), str(seen.part)) if seen.part else (None, "")
        self.report.final_losses = {name: losses[-1] for name, losses in self.curves.items()}

    def picture(self, path: Path) -> None:
        """Draws the curves."""
        draw(
            path,
            {name: (range(len(losses)), losses) for name, losses in self.curves.items()},
            {follower.job.row.selector: follower.shares for follower in self.followers},
            title=f"{', '.join(self.report.tiers)}: from the same start, on the same batches",
        )
        self.report.picture = str(path)

    def _build(self, job: Job, params: Params) -> Tier:
        try:
            return job.tier_class(params, lr=self.lr, device=torch.device(job.accelerator), dtype=self.dtype)
        except (Exception, SystemExit) as error:
            raise TierError(
                f"tier '{job.row.name}' cannot be built: {type(error).__name__}: {error}"
            ) from error

    def _step(self, job: Job, tier: Tier, x: Any, y: Any, *, split: bool) -> Step:
        device = torch.device(job.accelerator)
        try:
            with autocast(self.spec.train.precision, device):
                return take_step(tier, x.to(device), y.to(device), split=split)
        except (Exception, SystemExit) as error:
            raise TierError(f"tier '{job.row.name}': {type(error).__name__}: {error}") from error

    def _compare(self, number: int, before: Params, lead: Step, after: Params, x: Any, y: Any) -> None:
        exact, x64, y64 = as_float64(before), x.numpy().astype(np.float64), y.numpy().astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            sound = bound_step(exact, x64, y64, self.r)
            for follower in self.followers:
                if follower.seen.part is not None:
                    continue
                seen, job = follower.seen, follower.job
                tier = self._build(job, before)
                step = self._step(job, tier, x, y, split="gradients" in follower.pair.compared)
                ahead = seen.worst
                seen.worst = 0.0
                _compare_steps(seen, number, step, lead, sound)
                if "parameters" in follower.pair.compared:
                    allowed = self._update_bound(exact, sound, x64, y64)
                    expected = after
                    if self._remembers:  # then a first update is compared with a first update
                        twin = self._build(self.jobs[0], before)
                        self._step(self.jobs[0], twin, x, y, split=False)
                        expected = twin.params()
                    _compare_params(seen, number, tier.params(), expected, allowed)
                follower.shares.append(seen.worst)
                seen.worst = max(ahead, seen.worst)
                if seen.end_step():
                    follower.pair.steps = number + 1

    @property
    def _remembers(self) -> bool:
        return self.jobs[0].tier_class.recipe.optimizer != "sgd"

    def _update_bound(self, before: Params, sound: Sound, x: Array, y: Array) -> Params:
        if self._remembers:
            _, grads = gradients(before, x, y)
            return AdamBound(Adam(self.lr), self.r).update(before, grads, sound.gradients)[1]
        return bound_sgd(before, sound.sizes, sound.gradients, lr=self.lr, terms=len(x), r=self.r)

    def _record(self, record: RunRecord, first: int) -> None:
        series = {f"loss/{name}": losses for name, losses in self.curves.items()}
        series |= {f"share_of_bound/{f.job.row.selector}": f.shares for f in self.followers}
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
            pair.notes.append(
                "each of Adam's steps is compared as a first one: layerlab check proves the rest"
            )
    return pair


def _compare_steps(seen: Comparison, number: int, step: Step, lead: Step, sound: Sound) -> None:
    if step.y_pred is not None and lead.y_pred is not None:
        seen.compare(number, "y_pred", step.y_pred, lead.y_pred, 2 * sound.y_pred)
    seen.compare(number, "loss", step.loss, lead.loss, 2 * sound.loss)
    if step.gradients is not None and lead.gradients is not None:
        for name in BACKWARD:
            if name in lead.gradients:
                bound = 2 * getattr(sound.gradients, name)
                seen.compare(number, f"grad_{name}", step.gradients.get(name), lead.gradients[name], bound)


def _compare_params(seen: Comparison, number: int, actual: Params, expected: Params, allowed: Params) -> None:
    for name in BACKWARD:
        if getattr(expected, name) is not None:
            seen.compare(
                number, name, getattr(actual, name), getattr(expected, name), 2 * getattr(allowed, name)
            )
