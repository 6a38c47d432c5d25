"""The step-locked proof: a tier beside the float64 oracle, compared after every step.

Before each step the oracle takes the tier's own parameters. So rounding never accumulates, and what a correct
tier may be off by is the rounding of one step, which `layerlab.rounding` bounds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from layerlab.reference import Adam, forward, gradients, sgd
from layerlab.replay import steps_of
from layerlab.rounding import AdamBound, Roundoff, bound_forward, bound_sgd, bound_step
from layerlab.tier import Params, host_copy

if TYPE_CHECKING:
    from torch import Tensor

    from layerlab.conformance.problems import Problem
    from layerlab.tier import Array, Precision, Tier

STEPS = 50
# One of so many batches has memory of its own. Three sizes may take turns, and all of them should get there.
_ELSEWHERE = 4
# As a step computes them: what comes first is nearest to the cause.
BACKWARD = ("w2", "b2", "w1", "b1")


@dataclass(frozen=True)
class Part:
    """Where two computations part: the first step, and its first tensor, that differ by more than rounding.

    Attributes:
        step: The step, from 0.
        tensor: "y_pred", "loss", "grad_w2", ..., "w2", ...; "b1" after "w1" and so on.
        index: Where the largest difference is; () in a number.
        actual: What was computed there.
        expected: What should have been.
        bound: How far apart they may be.
        also: Further tensors that part at the same step.
        note: What is wrong, where it is no matter of size: a shape, a missing gradient.
    """

    step: int
    tensor: str
    index: tuple[int, ...] = ()
    actual: float = float("nan")
    expected: float = float("nan")
    bound: float = 0.0
    also: tuple[str, ...] = ()
    note: str | None = None

    def __str__(self) -> str:
        where = f"[{','.join(map(str, self.index))}]" if self.index else ""
        said = self.note or f"{self.actual:.9g} against {self.expected:.9g}, bound {self.bound:.2g}"
        more = f" (also {', '.join(self.also)})" if self.also else ""
        return f"step {self.step}, {self.tensor}{where}: {said}{more}"


@dataclass
class Comparison:
    """A sequence of steps compared tensor by tensor.

    Attributes:
        worst: The largest difference so far, as a share of its bound.
        part: Where they part, or None.
        resolution: Of every tensor the smallest error, as a share of the tensor, that would have shown had it
            been made at every step.
    """

    worst: float = 0.0
    part: Part | None = None
    resolution: dict[str, float] = field(default_factory=dict)
    _parts: list[Part] = field(default_factory=list)

    def compare(
        self, step: int, tensor: str, actual: Any, expected: Any, bound: Any, *, before: Any = 0.0
    ) -> None:
        """Compares one tensor; what is not finite is as wrong as can be.

        Args:
            step: The step.
            tensor: What is compared.
            actual: What was computed.
            expected: What should have been.
            bound: How far apart they may be, a number or one for each entry.
            before: What an update started from: the share of an error is that of the update.
        """
        a, e = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
        if a.shape != e.shape:
            self._parts.append(Part(step, tensor, note=f"shape {a.shape} against {e.shape}"))
            return
        allowed = np.broadcast_to(np.asarray(bound, np.float64), a.shape)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            diff = np.abs(a - e)
            diff = np.where(np.isfinite(diff), diff, np.inf)
            share = np.where(diff > 0, diff / allowed, 0.0)
            size = np.abs(e - before)
            seen = np.where(size > 0, allowed / size, np.inf).min(initial=np.inf)
        self.resolution[tensor] = min(float(seen), self.resolution.get(tensor, np.inf))
        wrong = diff > allowed
        self.worst = max(self.worst, float(share.max(initial=0.0)))
        if wrong.any():
            flat = int(np.where(wrong, diff, -1.0).argmax())
            index = tuple(int(i) for i in np.unravel_index(flat, a.shape))
            self._parts.append(
                Part(step, tensor, index, float(a[index]), float(e[index]), float(allowed[index]))
            )

    def end_step(self) -> bool:
        """Ends a step.

        Returns:
            Whether everything agreed; where not, `part` says what came first.
        """
        if not self._parts:
            return True
        first, *rest = self._parts
        also = dict.fromkeys(part.tensor for part in rest if part.tensor != first.tensor)
        self.part = Part(**{**vars(first), "also": tuple(also)})
        return False


class Feed:
    """Hands a tier its batches, the way an unkind caller would: in the same memory, but for one now and then.

    Args:
        problem: What is trained.
        precision: The precision of the run.
        device: Where the tensors live.
    """

    def __init__(self, problem: Problem, precision: Precision, device: torch.device) -> None:
        self.dtype = torch.float64 if precision == "64-true" else torch.float32
        self.host = np.dtype(np.float64 if precision == "64-true" else np.float32)
        self._problem, self._device = problem, device
        self._memory: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def params(self) -> Params:
        """The first parameters, in the precision of the run."""
        return self._problem.params.map(lambda p: p.astype(self.host))

    def batch(self, step: int) -> tuple[Tensor, Tensor, Array, Array]:
        """Inputs and targets of a step, as the tier gets them and as the oracle does."""
        x, y = (a.astype(self.host) for a in self._problem.batches[step % len(self._problem.batches)])
        if step % _ELSEWHERE == 2:
            tensors = self._make(x), self._make(y)
        elif x.shape in self._memory:
            tensors = self._memory[x.shape]
        else:
            tensors = self._memory[x.shape] = self._make(x), self._make(y)
        for tensor, array in zip(tensors, (x, y), strict=True):
            tensor.copy_(torch.from_numpy(array))
        return *tensors, x.astype(np.float64), y.astype(np.float64)

    def _make(self, array: Array) -> Tensor:
        rows, columns = array.shape
        if self._problem.contiguous:
            return torch.empty(rows, columns, dtype=self.dtype, device=self._device)
        return torch.empty(columns, 2 * rows, dtype=self.dtype, device=self._device).t()[::2]


@dataclass
class Step:
    """What a tier computed in one step.

    Attributes:
        loss: The loss.
        y_pred: The predictions that went into it; None where the tier does not split its step.
        gradients: By name, "w1", "w2", ...; None as above.
    """

    loss: float
    y_pred: Array | None = None
    gradients: dict[str, Array] | None = None


def take_step(tier: Tier, x: Tensor, y: Tensor, *, split: bool) -> Step:
    """Trains a tier on one batch, in its parts where they are to be looked at."""
    if not split:
        return Step(number(tier.step(x, y)))
    y_pred = tier.forward(x)
    seen = host_copy(y_pred)
    loss = number(tier.backward(x, y_pred, y))
    names = [name for name, p in tier.params()._asdict().items() if p is not None]
    grads = [host_copy(g) for g in tier.gradients()]
    if len(grads) != len(names):
        raise ValueError(f"gradients() gives {len(grads)} gradients, the tier has {', '.join(names)}")
    tier.update()
    return Step(loss, seen, dict(zip(names, grads, strict=True)))


class Oracle:
    """The float64 side of the proof, with the bounds on what a tier may differ by.

    Args:
        optimizer: "sgd" or "adam"; any other updates in a way of its own, and no parameters are expected.
        lr: Learning rate.
        r: The rounding of the tier's precision.
    """

    def __init__(self, optimizer: str, lr: float, r: Roundoff) -> None:
        self.lr, self.r = lr, r
        self.optimizer = optimizer
        self._adam = AdamBound(Adam(lr), r) if optimizer == "adam" else None

    def judge(
        self, seen: Comparison, number: int, step: Step, before: Params, after: Params, x: Array, y: Array
    ) -> None:
        """Compares what a tier computed with what it should have, in the order in which it is computed."""
        loss, grads = gradients(before, x, y)
        sound = bound_step(before, x, y, self.r)
        if step.y_pred is not None:
            seen.compare(number, "y_pred", step.y_pred, forward(before, x), sound.y_pred)
        seen.compare(number, "loss", step.loss, loss, sound.loss)
        errors, sizes, terms = sound.gradients, sound.sizes, len(x)
        if step.gradients is not None:
            for name in BACKWARD:
                if getattr(grads, name) is not None:
                    exact, bound = getattr(grads, name), getattr(errors, name)
                    seen.compare(number, f"grad_{name}", step.gradients.get(name), exact, bound)
            shown = Params(**{name: g.astype(np.float64) for name, g in step.gradients.items()})
            # Judged by the gradients that it was given, what is left of an update is its own arithmetic.
            if all(g.shape == getattr(grads, name).shape for name, g in step.gradients.items()):
                grads, errors = shown, shown.map(np.zeros_like)
                sizes, terms = shown.map(np.abs), 1
        if self._adam is not None:
            expected, allowed = self._adam.update(before, grads, errors)
        elif self.optimizer == "sgd":
            expected = sgd(before, grads, lr=self.lr)
            allowed = bound_sgd(before, sizes, errors, lr=self.lr, terms=terms, r=self.r)
        else:
            return
        for name in BACKWARD:
            if getattr(expected, name) is not None:
                seen.compare(
                    number, name, getattr(after, name), getattr(expected, name), getattr(allowed, name)
                )


def prove(
    tier_class: type[Tier],
    problem: Problem,
    *,
    precision: Precision = "32-true",
    device: torch.device | None = None,
    split: bool | None = None,
    steps: int = STEPS,
    replayed: bool = False,
) -> Comparison:
    """Runs a tier beside the oracle, locked together at every step.

    Args:
        tier_class: The tier.
        problem: What it trains on.
        precision: What it computes in.
        device: Where it runs.
        split: Whether to look into the step; None: where the tier can show it.
        steps: How many steps.
        replayed: Whether its steps are made as in a run on CUDA, replayed where they can be, and not looked
            into.

    Returns:
        The comparison, which ends with the first step at which they part.
    """
    device = device or torch.device("cpu")
    split = tier_class.splits_step() if split is None else split
    r = Roundoff.of(precision)
    optimizer = tier_class.recipe.optimizer
    lr = problem.learning_rate(tier_class.recipe)
    feed = Feed(problem, precision, device)
    tier = tier_class(feed.params(), lr=lr, device=device, dtype=feed.dtype)
    made = steps_of(tier, device=device, dtype=feed.dtype, in_place=False) if replayed else None
    oracle = Oracle(optimizer, lr, r)
    seen = Comparison()
    if fault := _as_constructed(tier.params(), feed.params()):
        seen.part = fault
        return seen
    before = as_float64(tier.params())
    for number in range(steps):
        x, y, x64, y64 = feed.batch(number)
        with autocast(precision, device):
            if made is None:
                step = take_step(tier, x, y, split=split)
            else:
                step = Step(float(made.run(range(number, number + 1), [(x, y)])[0]))
        after = as_float64(tier.params())
        with np.errstate(over="ignore", invalid="ignore"):  # a tier that runs away is judged, not warned of
            oracle.judge(seen, number, step, before, after, x64, y64)
            if number % 2 == 0:
                # Every second step: what a tier remembers of one call is of use to the next, or not. Other
                # rows: what it remembers of them is of no use in the next step.
                _, _, _, e_y = bound_forward(after, x64[::-1], r)
                with torch.no_grad(), autocast(precision, device):
                    y_pred = host_copy(tier.forward(torch.flip(x, [0])))
                seen.compare(number, "y_pred", y_pred, forward(after, x64[::-1]), e_y)
        if not seen.end_step():
            break
        before = after
    return seen


def autocast(precision: Precision, device: torch.device) -> Any:
    """The context in which a tier of a precision computes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")


def as_float64(params: Params) -> Params:
    """A copy in float64, whatever the tier does with its own."""
    return params.map(lambda p: np.array(p, np.float64))


def _as_constructed(kept: Any, given: Params) -> Part | None:
    """What is wrong with the parameters of a tier that has done nothing yet."""
    if not isinstance(kept, Params):
        return Part(0, "params", note=f"params() gives a {type(kept).__name__}, not Params")
    for name, p, q in zip(Params._fields, kept, given, strict=True):
        if p is None and q is None:
            continue
        if p is None or q is None:
            there = "is missing" if p is None else "is there, though None was given"
            return Part(0, name, note=f"as constructed, it {there}")
        if np.shape(p) != q.shape:
            return Part(0, name, note=f"as constructed, its shape is {np.shape(p)}, not {q.shape}")
        if not np.array_equal(p, q):
            return Part(0, name, note="as constructed, its values are not those that were given")
    return None


def number(loss: Any) -> float:
    """A loss as a number.

    Raises:
        ValueError: It has a shape.
    """
    if np.shape(host_copy(loss)) != ():
        raise ValueError(f"the loss has shape {np.shape(host_copy(loss))}, and should be a number")
    return float(host_copy(loss))
