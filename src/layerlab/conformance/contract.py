"""The checks of what `layerlab.Tier` promises beside the arithmetic."""

from __future__ import annotations

import io
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from layerlab.conformance.scorecard import Finding, NotApplicable, as_finding
from layerlab.reference import forward
from layerlab.rounding import Roundoff, bound_step
from layerlab.tier import CONTRACT_VERSION, Params, host_copy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from layerlab.conformance.subject import Subject

_SEVERAL = 5


def contract_is_declared(subject: Subject) -> Finding:
    """The class says for which version of the contract it was written, and it is this one."""
    declared = getattr(subject.tier_class, "contract_version", None)
    said = f"contract_version = {CONTRACT_VERSION}"
    ok = declared == CONTRACT_VERSION
    return Finding(ok, detail=said if ok else f"it should say {said}")


def params_are_copies(subject: Subject) -> Finding:
    """What goes in and what `params()` gives are copies: training does not change them, nor they the tier."""
    trial = subject.trial()
    given = trial.feed.params()
    kept = given.map(np.copy)
    tier = trial.tier = trial.build(given)
    taken = tier.params()
    snapshot = taken.map(np.copy)
    trial.steps(1)
    faults = [f"training changes the {name} it was given" for name in _differing(given, kept)]
    faults += [f"training changes the {name} that params() gave" for name in _differing(taken, snapshot)]
    now = tier.params().map(np.copy)
    for array in _arrays(tier.params()):
        if not array.flags.writeable:
            faults.append("params() gives arrays that cannot be written to")
            break
        np.add(array, 1, out=array)
    faults += [f"writing to params() changes the tier's {name}" for name in _differing(tier.params(), now)]
    return as_finding(faults, "arguments, params() twice")


def precision_is_kept(subject: Subject) -> Finding:
    """In every declared precision the parameters keep their type: float64 in 64-true, else float32."""
    faults = []
    for precision in sorted(subject.tier_class.precisions):
        trial = subject.trial(precision=precision)  # type: ignore[arg-type]
        trial.steps(1)
        for name, p in trial.tier.params()._asdict().items():
            if p is not None and p.dtype != trial.feed.host:
                faults.append(f"{precision}: {name} is {p.dtype}, not {trial.feed.host}")
    return as_finding(faults, ", ".join(sorted(subject.tier_class.precisions)))


def forward_changes_nothing(subject: Subject) -> Finding:
    """`forward` between steps, on these rows or others, leaves the training as it is, to the bit."""
    trained, disturbed = subject.trial(), subject.trial()
    faults = []
    for _ in range(_SEVERAL):
        x, _, _, _ = disturbed.feed.batch(disturbed.steps_done)
        before = disturbed.tier.params()
        for rows in (x, x[:1], torch.flip(x, [0])):
            disturbed.tier.forward(rows)
        with torch.inference_mode():  # as under a Trainer's validation
            disturbed.tier.forward(x)
        faults += [f"forward() changes {name}" for name in _differing(disturbed.tier.params(), before)]
        if disturbed.steps(1) != trained.steps(1):
            faults.append("a step after other calls of forward() has another loss")
    changed = _differing(disturbed.tier.params(), trained.tier.params())
    faults += [f"steps after other calls of forward() lead to another {name}" for name in changed]
    return as_finding(faults, f"{_SEVERAL} steps with four calls between")


def loss_is_a_number(subject: Subject) -> Finding:
    """The loss is 0-d and carries no graph: what is kept of it must not keep all that led to it."""
    trial = subject.trial()
    x, y, _, _ = trial.feed.batch(0)
    loss = trial.tier.step(x, y)
    faults = []
    if getattr(loss, "requires_grad", False):
        faults.append("the loss requires a gradient: return loss.detach()")
    if (shape := np.shape(host_copy(loss))) != ():
        faults.append(f"the loss has shape {shape}, and should be 0-d")
    return as_finding(faults, type(loss).__name__)


def loss_is_before_the_update(subject: Subject) -> Finding:
    """The loss that `step` returns is that of the parameters before the update."""
    trial = subject.trial()
    r = Roundoff.of(subject.precision)
    worst, faults = 0.0, []
    for number in range(_SEVERAL):
        x, y, x64, y64 = trial.feed.batch(number)
        start = trial.tier.params().map(np.float64)
        loss = float(host_copy(trial.tier.step(x, y)))
        end = trial.tier.params().map(np.float64)
        before, after = (float(np.square(forward(p, x64) - y64).sum()) for p in (start, end))
        bound = bound_step(start, x64, y64, r).loss
        worst = max(worst, abs(loss - before) / bound)
        if abs(loss - before) > bound:
            nearer = "after" if abs(loss - after) < abs(loss - before) else "neither before nor after"
            said = f"loss {loss:.9g}; before the update it is {before:.9g}, after it {after:.9g}: {nearer}"
            faults.append(f"step {number}, {said}")
            break
    return Finding(not faults, worst, 1.0, faults[0] if faults else f"{_SEVERAL} steps")


def construction_continues(subject: Subject) -> Finding:
    """A tier built from `params()` of a trained one goes on exactly as it does."""
    trial = subject.trial()
    trial.steps(_SEVERAL)
    twin = subject.trial()
    twin.tier, twin.steps_done = twin.build(trial.tier.params()), trial.steps_done
    faults = [f"its {name} is another" for name in _differing(twin.tier.params(), trial.tier.params())]
    x, _, _, _ = trial.feed.batch(0)
    if not _same(host_copy(trial.tier.forward(x)), host_copy(twin.tier.forward(x))):
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


def state_resumes(subject: Subject) -> Finding:
    """A fresh tier that loads `state()`, from a file too, goes on to the bit, optimizer included."""
    if not subject.tier_class.resumable():
        raise NotApplicable("state(): the tier is not resumable")
    trial = subject.trial()
    trial.steps(_SEVERAL)
    state = trial.tier.state()
    if odd := sorted({type(leaf).__name__ for leaf in _leaves(state) if not _plain(leaf)}):
        return Finding(False, detail=f"state() holds {', '.join(odd)}: only tensors, arrays and numbers can")
    memory = io.BytesIO()
    torch.save(_as_tensors(state), memory)
    memory.seek(0)
    stored = torch.load(memory, weights_only=True)
    trained = [trial.steps(_SEVERAL), trial.tier.params()]
    faults = []
    # the state itself, after the tier that gave it went on; then what came back from a file
    for how, held in (("state()", state), ("state() from a file", stored)):
        twin = subject.trial()
        twin.tier, twin.steps_done = twin.build(twin.feed.params().map(np.zeros_like)), _SEVERAL
        twin.tier.load_state(held)
        resumed = [twin.steps(_SEVERAL), twin.tier.params()]
        if resumed[0] != trained[0]:
            faults.append(f"{how}: its losses are others")
        faults += [f"{how}: it trains to another {name}" for name in _differing(resumed[1], trained[1])]
    return as_finding(faults, f"{_SEVERAL} steps after {_SEVERAL}")


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


def world_is_left_alone(subject: Subject) -> Finding:
    """Generators, default dtype, grad mode, threads and switches stay as they are."""
    saved = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        # Somewhere in the middle of a sequence: seeding, with whatever seed, leads elsewhere.
        torch.manual_seed(0x5EED)
        torch.rand(7)
        np.random.seed(0x5EED)
        np.random.random(7)
        random.seed(0x5EED)
        random.random()
        before = _world()
        trial = subject.trial()
        trial.steps(_SEVERAL)
        x, _, _, _ = trial.feed.batch(0)
        trial.tier.forward(x)
        trial.tier.params()
        after = _world()
    finally:
        torch.set_rng_state(saved[0])
        np.random.set_state(saved[1])
        random.setstate(saved[2])
    changed = [f"{name} is changed" for name in before if before[name] != after[name]]
    return as_finding(changed, f"{len(before)} of them")


def inputs_are_not_written_to(subject: Subject) -> Finding:
    """Neither `step` nor `forward` writes to inputs or targets."""
    trial = subject.trial()
    faults = []
    for number in range(3):
        x, y, _, _ = trial.feed.batch(number)
        copies = x.clone(), y.clone()
        trial.tier.step(x, y)
        trial.tier.forward(x)
        for what, tensor, copy in (("x", x, copies[0]), ("y", y, copies[1])):
            if not torch.equal(tensor, copy):
                faults.append(f"{what} is written to")
    return as_finding(faults, "3 batches")


def gradients_are_used(subject: Subject) -> Finding:
    """`update` applies what is in `gradients()`, so that they can be averaged over processes in place."""
    if not subject.tier_class.splits_step():
        raise NotApplicable("backward() and update(): the step is not split")
    changed, kept = subject.trial(), subject.trial()
    x, y, _, _ = changed.feed.batch(0)
    for trial in (changed, kept):
        trial.tier.backward(x, trial.tier.forward(x), y)
    for gradient in changed.tier.gradients():
        gradient[...] = -gradient
    start = changed.tier.params()
    for trial in (changed, kept):
        trial.tier.update()
    faults = []
    for name, p in start._asdict().items():
        if p is None:
            continue
        there, back = getattr(kept.tier.params(), name) - p, getattr(changed.tier.params(), name) - p
        # a step along the opposite gradients goes the opposite way, but for the rounding of the sums
        if not np.allclose(there, -back, rtol=1e-3, atol=8 * np.finfo(p.dtype).eps * np.abs(p).max()):
            faults.append(f"update() does not apply what was written to the gradient of {name}")
    return as_finding(faults, "an update along negated gradients")


def _world() -> dict[str, Any]:
    numpy_state = np.random.get_state()
    world: dict[str, Any] = {
        "torch's generator": torch.get_rng_state().tolist(),
        "NumPy's generator": (numpy_state[1].tolist(), numpy_state[2:]),  # type: ignore[index]
        "Python's generator": random.getstate(),
        "torch's default dtype": torch.get_default_dtype(),
        "torch's default device": torch.get_default_device(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "torch's threads": torch.get_num_threads(),
        "deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "float32 precision of products": torch.get_float32_matmul_precision(),
        "NumPy's error state": np.geterr(),
    }
    if torch.cuda.is_available():
        world["CUDA's generator"] = torch.cuda.get_rng_state().tolist()
    return world


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
    elif isinstance(state, (list, tuple)):
        for value in state:
            yield from _leaves(value)
    else:
        yield state


def _plain(leaf: Any) -> bool:
    return leaf is None or isinstance(leaf, (bool, int, float, str, np.ndarray, np.generic, torch.Tensor))


def _as_tensors(state: Mapping[str, Any]) -> Any:
    """A state as a checkpoint holds it: arrays as tensors, for weights-only loading knows no arrays."""

    def convert(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: convert(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(convert(inner) for inner in value)
        return torch.from_numpy(np.asarray(value)) if isinstance(value, (np.ndarray, np.generic)) else value

    return convert(state)
