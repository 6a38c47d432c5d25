"""The checks of what `layerlab.Tier` promises beside the arithmetic."""

from __future__ import annotations

import functools
import io
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from layerlab.conformance import world
from layerlab.conformance.scorecard import Finding, NotApplicable, as_finding, raised
from layerlab.reference import forward
from layerlab.rounding import Roundoff, bound_step
from layerlab.tier import CONTRACT_VERSION, Params, host_copy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from layerlab.conformance.subject import Subject

_SEVERAL = 5


def everywhere(check: Callable[[Subject], Finding]) -> Callable[[Subject], Finding]:
    """Makes of a check of one precision, with or without biases, one of all that the tier declares."""

    @functools.wraps(check)
    def every(subject: Subject) -> Finding:
        variants = subject.variants()
        worst: Finding | None = None
        for variant in variants:
            said = f"{variant.precision}, {'bias' if variant.bias else 'no bias'}"
            try:
                finding = check(variant)
            except NotApplicable:
                raise
            except (Exception, SystemExit) as error:  # noqa: BLE001 -- whatever it is, it is told with the variant
                finding = raised(error)
            if not finding.ok:
                return replace(finding, detail=f"{said}: {finding.detail}")
            if worst is None or (finding.figure or 0.0) > (worst.figure or 0.0):
                worst = finding
        assert worst is not None
        return replace(worst, detail=f"{worst.detail}; {len(variants)} of precision and bias")

    return every


def contract_is_declared(subject: Subject) -> Finding:
    """The class says for which version of the contract it was written, and it is this one."""
    declared = getattr(subject.tier_class, "contract_version", None)
    said = f"contract_version = {CONTRACT_VERSION}"
    ok = declared == CONTRACT_VERSION and declared is not True
    return Finding(ok, detail=said if ok else f"it should say {said}")


@everywhere
def params_are_copies(subject: Subject) -> Finding:
    """What goes in and what `params()` gives are copies: training does not change them, nor they the tier."""
    trial = subject.trial()
    given = trial.feed.params()
    kept = given.map(np.copy)
    tier = trial.tier = trial.build(given)
    taken = tier.params()
    snapshot = taken.map(np.copy)
    theirs = subject.trial()
    handed = theirs.feed.params()
    theirs.tier = theirs.build(handed)
    for array in _arrays(handed):
        np.add(array, 1, out=array)
    faults = [
        f"writing to the {name} that it was given changes the tier"
        for name in _differing(theirs.tier.params(), snapshot)
    ]
    trial.steps(1)
    faults += [f"training changes the {name} it was given" for name in _differing(given, kept)]
    faults += [f"training changes the {name} that params() gave" for name in _differing(taken, snapshot)]
    now = tier.params().map(np.copy)
    for array in _arrays(tier.params()):
        if not array.flags.writeable:
            faults.append("params() gives arrays that cannot be written to")
            break
        np.add(array, 1, out=array)
    faults += [f"writing to params() changes the tier's {name}" for name in _differing(tier.params(), now)]
    return as_finding(faults, "arguments, params() twice")


@everywhere
def precision_is_kept(subject: Subject) -> Finding:
    """In every declared precision the parameters keep their type: float64 in 64-true, else float32."""
    trial = subject.trial()
    trial.steps(1)
    kept = {name: p.dtype for name, p in trial.tier.params()._asdict().items() if p is not None}
    host = trial.feed.host
    faults = [f"{name} is {dtype}, not {host}" for name, dtype in kept.items() if dtype != host]
    return as_finding(faults, "one step")


@everywhere
def forward_changes_nothing(subject: Subject) -> Finding:
    """`forward` between steps, on these rows or others, leaves the training as it is, to the bit."""
    trained, disturbed = subject.trial(), subject.trial()
    faults = []
    for _ in range(_SEVERAL):
        x, _, _, _ = disturbed.feed.batch(disturbed.steps_done)
        before = disturbed.tier.params()
        for rows in (x, x[:1], torch.flip(x, [0])):
            disturbed.forward(rows)
        with torch.inference_mode():  # as under a Trainer's validation
            disturbed.forward(x)
        faults += [f"forward() changes {name}" for name in _differing(disturbed.tier.params(), before)]
        if disturbed.steps(1) != trained.steps(1):
            faults.append("a step after other calls of forward() has another loss")
    changed = _differing(disturbed.tier.params(), trained.tier.params())
    faults += [f"steps after other calls of forward() lead to another {name}" for name in changed]
    return as_finding(faults, f"{_SEVERAL} steps with four calls between")


@everywhere
def loss_is_a_number(subject: Subject) -> Finding:
    """The loss is 0-d and carries no graph: what is kept of it must not keep all that led to it."""
    trial = subject.trial()
    x, y, _, _ = trial.feed.batch(0)
    with trial.computing():
        loss = trial.tier.step(x, y)
    faults = []
    if getattr(loss, "requires_grad", False):
        faults.append("the loss requires a gradient: return loss.detach()")
    if (shape := np.shape(host_copy(loss))) != ():
        faults.append(f"the loss has shape {shape}, and should be 0-d")
    return as_finding(faults, type(loss).__name__)


@everywhere
def loss_is_before_the_update(subject: Subject) -> Finding:
    """The loss that `step` returns is that of the parameters before the update."""
    trial = subject.trial()
    r = Roundoff.of(subject.precision)
    worst, faults = 0.0, []
    for number in range(_SEVERAL):
        _, _, x64, y64 = trial.feed.batch(number)
        start = trial.tier.params().map(np.float64)
        (loss,) = trial.steps(1)
        end = trial.tier.params().map(np.float64)
        before, after = (float(np.square(forward(p, x64) - y64).sum()) for p in (start, end))
        bound = bound_step(start, x64, y64, r).loss
        worst = max(worst, abs(loss - before) / bound)
        if not abs(loss - before) <= bound:
            nearer = "after" if abs(loss - after) < abs(loss - before) else "neither before nor after"
            said = f"loss {loss:.9g}; before the update it is {before:.9g}, after it {after:.9g}: {nearer}"
            faults.append(f"step {number}, {said}")
            break
    return Finding(not faults, worst, 1.0, faults[0] if faults else f"{_SEVERAL} steps")


@everywhere
def construction_continues(subject: Subject) -> Finding:
    """A tier built from `params()` of a trained one goes on exactly as it does."""
    trial = subject.trial()
    trial.steps(_SEVERAL)
    twin = subject.trial()
    twin.tier, twin.steps_done = twin.build(trial.tier.params()), trial.steps_done
    faults = [f"its {name} is another" for name in _differing(twin.tier.params(), trial.tier.params())]
    x, _, _, _ = trial.feed.batch(0)
    if not _same(trial.forward(x), twin.forward(x)):
        faults.append("its forward() gives something else")
    optimizer = subject.tier_class.recipe.optimizer
    if optimizer != "sgd":
        return as_finding(
            faults, f"parameters and forward(); the steps are left to state(): {optimizer} remembers"
        )
    if trial.steps(_SEVERAL) != twin.steps(_SEVERAL):
        faults.append("its losses are others")
    faults += [f"it trains to another {name}" for name in _differing(twin.tier.params(), trial.tier.params())]
    return as_finding(faults, f"{_SEVERAL} steps after {_SEVERAL}")


@everywhere
def state_resumes(subject: Subject) -> Finding:
    """A fresh tier that loads `state()`, from a file too, goes on to the bit, optimizer included."""
    if not subject.tier_class.resumable():
        raise NotApplicable("state(): the tier is not resumable")
    trial = subject.trial()
    trial.steps(_SEVERAL)
    state = trial.tier.state()
    if odd := sorted({type(leaf).__name__ for leaf in _leaves(state) if not _plain(leaf)}):
        return Finding(
            False, detail=f"state() holds {', '.join(odd)}: only tensors, arrays, numbers and None can"
        )
    memory = io.BytesIO()
    torch.save(_as_tensors(state), memory)
    memory.seek(0)
    stored = torch.load(memory, weights_only=True)
    trained = [trial.steps(_SEVERAL), trial.tier.params()]
    faults = []
    # the state itself, after the tier that gave it went on; what came back from a file; and the state again,
    # after a tier that loaded it went on, into one that had gone further
    for how, held, further in (
        ("state()", state, 0),
        ("state() from a file", stored, 0),
        ("state() a second time", state, 2 * _SEVERAL),
    ):
        twin = subject.trial()
        twin.tier = twin.build(twin.feed.params().map(np.zeros_like))
        twin.steps(further)
        twin.steps_done = _SEVERAL
        twin.tier.load_state(held)
        resumed = [twin.steps(_SEVERAL), twin.tier.params()]
        if resumed[0] != trained[0]:
            faults.append(f"{how}: its losses are others")
        faults += [f"{how}: it trains to another {name}" for name in _differing(resumed[1], trained[1])]
    return as_finding(faults, f"{_SEVERAL} steps after {_SEVERAL}")


@everywhere
def runs_repeat(subject: Subject) -> Finding:
    """On the CPU two runs from the same start, in turn with one from another, are equal to the bit."""
    if subject.device.type != "cpu":
        raise NotApplicable("accelerators: promised on the CPU only")
    first, second, other = (subject.trial() for _ in range(3))
    other.tier = other.build(other.feed.params().map(np.zeros_like))
    faults = []
    for number in range(4 * _SEVERAL):
        (one,), (two,) = first.steps(1), second.steps(1)
        other.steps(1)
        if one != two:
            faults.append(f"step {number}, loss: {one:.9g} and {two:.9g}")
            break
    faults += [
        f"they end with another {name}" for name in _differing(first.tier.params(), second.tier.params())
    ]
    return as_finding(faults, f"{4 * _SEVERAL} steps twice")


@everywhere
def world_is_left_alone(subject: Subject) -> Finding:
    """Generators, default dtype, grad mode, threads and switches stay as they are."""
    # Somewhere in the middle of a sequence: seeding, with whatever seed, leads elsewhere. Of torch's it is
    # those that it may draw from: `torch.manual_seed`, here, would take those of every other device along.
    torch.default_generator.manual_seed(0x5EED)
    torch.rand(7)
    if subject.device.type == "cuda":
        torch.cuda.manual_seed(0x5EED)
        torch.rand(7, device=subject.device)
    np.random.seed(0x5EED)
    np.random.random(7)
    random.seed(0x5EED)
    random.random()
    # The switches as they were before anything of the tier was run: it may have turned them then, for good.
    before = {**world.switches(), **subject.switches, **world.generators()}
    trial = subject.trial()
    trial.steps(_SEVERAL)
    x, _, _, _ = trial.feed.batch(0)
    trial.forward(x)
    trial.tier.params()
    after = {**world.switches(), **world.generators()}
    changed = [f"{name} is changed" for name in before if before[name] != after[name]]
    return as_finding(changed, f"{len(before)} of them")


@everywhere
def inputs_are_not_written_to(subject: Subject) -> Finding:
    """Neither `step` nor `forward` writes to inputs or targets."""
    trial = subject.trial()
    faults = []
    for number in range(3):
        x, y, _, _ = trial.feed.batch(number)
        copies = x.clone(), y.clone()
        with trial.computing():
            trial.tier.step(x, y)
        trial.forward(x)
        for what, tensor, copy in (("x", x, copies[0]), ("y", y, copies[1])):
            if not torch.equal(tensor, copy):
                faults.append(f"{what} is written to")
    return as_finding(faults, "3 batches")


@everywhere
def gradients_are_used(subject: Subject) -> Finding:
    """`update` applies what is in `gradients()`, so that they can be averaged over processes in place."""
    if not subject.tier_class.splits_step():
        raise NotApplicable("backward() and update(): the step is not split")
    # One has the gradients of another batch written into its own; the other has computed them itself.
    written, computed = subject.trial(), subject.trial()
    for trial, number in ((written, 0), (computed, 1)):
        x, y, _, _ = trial.feed.batch(number)
        with trial.computing():
            trial.tier.backward(x, trial.tier.forward(x), y)
    for gradient, source in zip(written.tier.gradients(), computed.tier.gradients(), strict=True):
        gradient[...] = source
    for trial in (written, computed):
        with trial.computing():
            trial.tier.update()
    differing = _differing(written.tier.params(), computed.tier.params())
    faults = [f"update() does not apply what was written to the gradient of {name}" for name in differing]
    return as_finding(faults, "an update along the gradients of another batch")


def _arrays(params: Params) -> Iterable[Any]:
    return (p for p in params if p is not None)


def _same(a: Any, b: Any) -> bool:
    return np.array_equal(a, b, equal_nan=True)


def _differing(a: Params, b: Params) -> list[str]:
    return [
        name
        for name, p, q in zip(Params._fields, a, b, strict=True)
        if (p is None) != (q is None) or (p is not None and not _same(p, q))
    ]


def _leaves(state: Any) -> Iterable[Any]:
    if isinstance(state, dict):
        for value in state.values():
            yield from _leaves(value)
    elif type(state) in (list, tuple):
        for value in state:
            yield from _leaves(value)
    else:
        yield state


def _plain(leaf: Any) -> bool:
    # torch's own optimizers remember None where there is no momentum
    return leaf is None or isinstance(leaf, (bool, int, float, np.ndarray, np.generic, torch.Tensor))


def _as_tensors(state: Mapping[str, Any]) -> Any:
    """A state as a checkpoint holds it: arrays as tensors, for weights-only loading knows no arrays."""

    def convert(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: convert(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(convert(inner) for inner in value)
        return torch.from_numpy(np.asarray(value)) if isinstance(value, (np.ndarray, np.generic)) else value

    return convert(state)
