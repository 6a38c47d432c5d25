"""No speed without proof: what was timed is compared with the oracle, on the very object that was timed.

Two things are looked at. *That the work was done while the clock ran:* the oracle makes the same steps from
the same start, and losses and parameters must have gone the same way. That is a comparison of trajectories,
so it is not to rounding but to a few hundredths: enough to see steps that were skipped, or an answer given
twice. *That it is still the right work:* the object then makes a few more steps on other rows in the same
memory, each compared with the oracle within the bound of that one step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from layerlab.conformance.lockstep import Comparison, Oracle, as_float64, take_step
from layerlab.reference import Adam, gradients, sgd
from layerlab.rounding import Roundoff

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from layerlab.tier import Array, Params, Precision, Tier

STEPS_AFTER = 5
# Of the way that the oracle went and of each of its losses; and of the first loss, beside which the last ones
# of a training that converges are small differences of large numbers.
_NEAR, _OF_THE_FIRST = 0.03, 1e-4


@dataclass
class Trajectory:
    """The oracle's own way from a start: made once, as far as it is asked for.

    Attributes:
        start: First parameters, float64.
        x: Inputs, shape (N, n_in).
        y: Targets, shape (N, n_out).
        optimizer: "sgd" or "adam".
        lr: Learning rate.
    """

    start: Params
    x: Array
    y: Array
    optimizer: str
    lr: float
    _losses: list[float] = field(default_factory=list)
    _ends: dict[int, Params] = field(default_factory=dict)

    def follow(self, steps: int) -> tuple[list[float], Params]:
        """The losses of so many steps, and the parameters after them."""
        if steps not in self._ends:
            params, losses = self.start, []
            adam = Adam(self.lr)
            for _ in range(steps):
                loss, grads = gradients(params, self.x, self.y)
                losses.append(loss)
                adams = self.optimizer == "adam"
                params = adam.update(params, grads) if adams else sgd(params, grads, lr=self.lr)
            self._ends[steps] = params
            if steps > len(self._losses):
                self._losses = losses
        return self._losses[:steps], self._ends[steps]


def audit_way(way: Trajectory, losses: Sequence[float], end: Params) -> str | None:
    """What shows that the steps of a round were not made, or None.

    Args:
        way: The oracle's way from the same start.
        losses: The losses of the round.
        end: The parameters after it.
    """
    expected, after = way.follow(len(losses))
    allowed = _NEAR * np.abs(expected) + _OF_THE_FIRST * abs(expected[0])
    wrong = ~(np.abs(np.subtract(losses, expected)) <= allowed)
    if wrong.any():
        step = int(wrong.argmax())
        return f"timed step {step} gave the loss {losses[step]:.6g}, and it is {expected[step]:.6g}"
    for name, p in end._asdict().items():
        if p is None:
            continue
        target, start = getattr(after, name), getattr(way.start, name)
        went, off = np.linalg.norm(target - start), np.linalg.norm(p - target)
        if not off <= _NEAR * went:
            share = off / went if went else float("inf")
            return f"after {len(losses)} timed steps {name} is off by {share:.2g} of its way"
    return None


def audit_steps(tier: Tier, x: Tensor, y: Tensor, precision: Precision, lr: float, seed: int) -> str | None:
    """Where a timed object parts from the oracle in further steps, or None.

    Args:
        tier: The object.
        x: The inputs that it was timed on; they are overwritten.
        y: Its targets; they are overwritten.
        precision: The precision of the run.
        lr: Its learning rate.
        seed: What other rows are drawn from.
    """
    rng = np.random.default_rng(seed)
    # What Adam remembers of thousands of steps is not known here; its way was audited.
    optimizer = tier.recipe.optimizer if tier.recipe.optimizer == "sgd" else "unknown"
    oracle = Oracle(optimizer, lr, Roundoff.of(precision))
    seen = Comparison()
    for number in range(STEPS_AFTER):
        for tensor in (x, y):
            tensor.copy_(_like(tensor, rng))
        before = as_float64(tier.params())
        step = take_step(tier, x, y, split=type(tier).splits_step())
        exact = (tensor.detach().cpu().numpy().astype(np.float64) for tensor in (x, y))
        oracle.judge(seen, number, step, before, as_float64(tier.params()), *exact)
        if not seen.end_step():
            return f"after the timing, {seen.part}"
    return None


def _like(tensor: Tensor, rng: np.random.Generator) -> Any:
    import torch

    return torch.from_numpy(rng.standard_normal(tuple(tensor.shape))).to(tensor.dtype)
