"""The oracle's way through a round: what every step and the end of it should be.

There is more than one right way where a pre-activation comes to 0 and rounding decides on which side it goes
on. Mostly that is of no account: it is pushed across, or back and forth, and both sides are one way again a
step later. But there are places from which each side leads away from the other. A unit that stays on for a
row moves otherwise from there on than one that was switched off, until the round is over, and both are right.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from layerlab.reference import Adam, forward, gradients, sgd
from layerlab.tier import Params

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from layerlab.tier import Array

# By how much an error may have grown at the end of a round; `audit` says why.
GROWTH = math.e**2


@dataclass(frozen=True)
class Fork:
    """A step from which two ways lead on.

    Attributes:
        step: The step, counted over all rows.
        row: The row of the batch.
        unit: The hidden unit whose pre-activation is as good as 0 there.
    """

    step: int
    row: int
    unit: int


@dataclass(frozen=True)
class Way:
    """The oracle's way from a start, over rows that change in between.

    Attributes:
        start: First parameters, float64.
        end: The parameters after the last step.
        losses: The loss of every step.
        slopes: The norm of the gradient at every step.
        counts: How many steps were made on each of the rows.
        rounding: How far a loss is off, in units of the roundoff.
        terms: How many terms go into a loss, on its longest way.
        optimizer: "sgd" or "adam".
    """

    start: Params
    end: Params
    losses: Array
    slopes: Array
    rounding: Array
    counts: tuple[int, ...]
    terms: int
    optimizer: str


def follow(
    start: Params,
    rows: Sequence[tuple[Array, Array]],
    counts: Sequence[int],
    *,
    optimizer: str,
    lr: float,
    fork: Fork | None = None,
) -> Way:
    """Makes the steps of a round in float64.

    Args:
        start: First parameters, float64.
        rows: Inputs (N, n_in) and targets (N, n_out), float64.
        counts: How many steps are made on each of them, one after the other.
        optimizer: "sgd" or "adam".
        lr: Learning rate.
        fork: Where to go the other way.
    """
    update = _Update(optimizer, lr)
    params = start
    terms = rows[0][0].shape[1] + start.w2.shape[0] + rows[0][1].size
    losses, slopes, rounding = [], [], []
    for step, (x, y) in _steps(rows, counts):
        size = 1 + float(np.sqrt(np.square(y).mean()))  # of what is added up in a prediction, about
        loss, grads = gradients(params, x, y)
        losses.append(loss)
        slopes.append(norm(grads))
        rounding.append(math.sqrt(terms) * (loss + 4 * math.sqrt(loss) * size))
        if fork is not None and step == fork.step:
            grads = _changed(grads, x, fork, _change(params, x, y, fork))
        params = update(params, grads)
    seen = np.array(losses), np.array(slopes), np.array(rounding)
    return Way(start, params, *seen, tuple(counts), terms, optimizer)


def forks(
    start: Params,
    rows: Sequence[tuple[Array, Array]],
    counts: Sequence[int],
    *,
    optimizer: str,
    lr: float,
    roundoff: float,
) -> list[Fork]:
    """Where another right way leads off the one that `follow` takes, the most doubtful place first.

    A pre-activation is as good as 0 where it is less than its error: roundings of either sign in each of the
    terms of its sum and in each step before, which grow as their root, and e-fold twice (see `audit`). Both
    sides are tried for a step: they part for good where each leads further to its own.

    Args:
        start: As for `follow`.
        rows: As for `follow`.
        counts: As for `follow`.
        optimizer: As for `follow`.
        lr: As for `follow`.
        roundoff: The unit roundoff of those who follow.

    Returns:
        One fork for each row and unit.
    """
    update, params = _Update(optimizer, lr), start
    nearest: dict[tuple[int, int], tuple[float, int]] = {}
    for step, (x, y) in _steps(rows, counts):
        h = x @ params.w1 + _bias(params)  # (N, H)
        sizes = np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(params.w1, axis=0)) + np.abs(_bias(params))
        doubts = np.abs(h) / (GROWTH * roundoff * math.sqrt(step + x.shape[1]) * sizes)
        _, grads = gradients(params, x, y)
        before, was, params = update.copy(), params, update(params, grads)
        for row, unit in np.argwhere((doubts <= 1) & ((h > 0) == (x @ params.w1 + _bias(params) > 0))):
            there = Fork(step, int(row), int(unit))
            doubt = float(doubts[row, unit])
            if doubt >= nearest.get((there.row, there.unit), (math.inf, 0))[0]:
                continue
            one = Fork(step, there.row, 0)
            change = _change(was, x, y, there)
            other = before.only(unit)(_only(was, unit), _changed(_only(grads, unit), x, one, change))
            if (_unit(other, x[row], 0) > 0) != (h[row, unit] > 0):
                nearest[there.row, there.unit] = doubt, step
    ranked = sorted((doubt, step, *place) for place, (doubt, step) in nearest.items())
    return [Fork(*place) for _, *place in ranked]


class _Update:
    """The optimizer's step."""

    def __init__(self, optimizer: str, lr: float) -> None:
        self._lr = lr
        self._adam = Adam(lr) if optimizer == "adam" else None

    def __call__(self, params: Params, grads: Params) -> Params:
        return sgd(params, grads, lr=self._lr) if self._adam is None else self._adam.update(params, grads)

    def copy(self) -> _Update:
        """One that goes on from here by itself; what Adam remembers is replaced and never written to."""
        twin = copy.copy(self)
        if self._adam is not None:
            twin._adam = copy.copy(self._adam)
            twin._adam.m, twin._adam.v = list(self._adam.m), list(self._adam.v)
        return twin

    def only(self, unit: int) -> _Update:
        """One for the parameters of a hidden unit, as `_only` gives them."""
        twin = self.copy()
        if twin._adam is not None:
            # without the last biases, which belong to no hidden unit
            for moments in (twin._adam.m, twin._adam.v):
                moments[:] = [p for p in _only(Params(*moments), unit) if p is not None] if moments else []
        return twin


def _steps(
    rows: Sequence[tuple[Array, Array]], counts: Sequence[int]
) -> Iterator[tuple[int, tuple[Array, Array]]]:
    """Every step and its rows."""
    batches = (batch for batch, count in zip(rows, counts, strict=True) for _ in range(count))
    return enumerate(batches)


def _change(params: Params, x: Array, y: Array, fork: Fork) -> float:
    """What the gradient by a pre-activation changes by where ReLU does the contrary for a row and a unit."""
    row = slice(fork.row, fork.row + 1)
    back = float((2 * (forward(params, x[row]) - y[row]))[0] @ params.w2[fork.unit])
    return -back if _unit(params, x[fork.row], fork.unit) > 0 else back


def _changed(grads: Params, x: Array, fork: Fork, change: float) -> Params:
    """The gradients with such a change."""
    w1, b1 = grads.w1.copy(), None if grads.b1 is None else grads.b1.copy()
    w1[:, fork.unit] += change * x[fork.row]
    if b1 is not None:
        b1[fork.unit] += change
    return grads._replace(w1=w1, b1=b1)


def _only(params: Params, unit: int) -> Params:
    """The parameters of one hidden unit: a network that has no other."""
    one = slice(unit, unit + 1)
    return Params(params.w1[:, one], params.w2[one], None if params.b1 is None else params.b1[one])


def _unit(params: Params, x: Array, unit: int) -> float:
    """The pre-activation of a unit for a row (n_in,)."""
    return float(x @ params.w1[:, unit] + (0.0 if params.b1 is None else params.b1[unit]))


def _bias(params: Params) -> Array | float:
    return 0.0 if params.b1 is None else params.b1


def norm(params: Params) -> float:
    """The Euclidean norm of all parameters together."""
    return math.sqrt(sum(float(np.square(p).sum()) for p in params if p is not None))
