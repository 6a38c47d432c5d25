"""The oracle's way through a round: what every step and the end of it should be.

There is more than one right way where a pre-activation comes to 0 and rounding decides on which side it goes
on. Mostly that is of little account: where each side pushes it to the other one, both are one way again a
step later, if there is one on the same rows. Where both push it the same way, it was switched a step earlier
or later, and its unit's weights are apart from there on by what the row moves them in a step. And there are
places from which each side leads away from the other: a unit that stays on for a row moves otherwise from
there on than one that was switched off, until the round is over. All of these are right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from layerlab.benchmarking.walk import (
    Place,
    Update,
    Walk,
    bias,
    change_of_side,
    only,
    pre_activation,
    with_change,
)
from layerlab.reference import gradients
from layerlab.rounding import Roundoff

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from layerlab.tier import Array, Params

# By how much an error may have grown at the end of a round; `audit` says why.
GROWTH = math.e**2
# Who follows has this unit roundoff, or a smaller one.
_COARSEST = Roundoff.of("32-true").store


@dataclass(frozen=True)
class Fork:
    """A step from which two ways lead on.

    Attributes:
        step: The step, counted over all rows.
        place: The row of the batch, and the hidden unit whose pre-activation is as good as 0 there.
        parts: Each way leads away from the other; else they are no more than a step of the row apart.
    """

    step: int
    place: Place
    parts: bool = True


@dataclass(frozen=True)
class Way:
    """The oracle's way from a start, over rows that change in between.

    Attributes:
        start: First parameters, float64.
        end: The parameters after the last step.
        losses: The loss of every step.
        slopes: The norm of the gradient at every step.
        gone: How far gradient descent had gone before every step.
        near: Where gradient descent came near the other side of a ReLU, (K, 4): the step; how near the
            pre-activation was to 0, as a share of the norm of its terms; and by how much the loss and the
            parameters are others where the unit is on for the row in that step, or off, and the oracle's not.
            Of Adam nothing.
        counts: How many steps were made on each of the rows.
        rounding: How far a loss is off, in units of the roundoff.
        terms: How many terms go into a loss, on its longest way.
        optimizer: "sgd" or "adam".
    """

    start: Params
    end: Params
    losses: Array
    slopes: Array
    gone: Array
    near: Array
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
    taken: Sequence[Fork] = (),
) -> Way:
    """Makes the steps of a round in float64.

    Args:
        start: First parameters, float64.
        rows: Inputs (N, n_in) and targets (N, n_out), float64.
        counts: How many steps are made on each of them, one after the other.
        optimizer: "sgd" or "adam".
        lr: Learning rate.
        taken: Where to go the other way.
    """
    update = Update(optimizer, lr)
    params = start
    terms = rows[0][0].shape[1] + start.w2.shape[0] + rows[0][1].size
    losses: list[float] = []
    slopes: list[float] = []
    near: list[Array] = []
    rounding: list[float] = []
    for (x, y), count in zip(rows, counts, strict=True):
        size = 1 + float(np.sqrt(np.square(y).mean()))  # of what is added up in a prediction, about
        walk, steps = update.walk(params, x, y, count), range(len(losses), len(losses) + count)
        across = _Across(walk, [fork for fork in taken if fork.step in steps])
        watched = _Watched(walk, params, x, lr, near) if optimizer == "sgd" else None
        for step in steps:
            places = across.places(step)
            loss, slope = walk.step(places) if watched is None else watched.step(step, places)
            losses.append(loss)
            slopes.append(slope)
            rounding.append(math.sqrt(terms) * (loss + 4 * math.sqrt(loss) * size))
        params = walk.params()
    gone = lr * np.cumsum([0.0, *slopes])[:-1]
    seen = np.array(losses), np.array(slopes), gone, np.concatenate([np.zeros((0, 4)), *near])
    return Way(start, params, *seen, np.array(rounding), tuple(counts), terms, optimizer)


class _Watched:
    """A walk of gradient descent, of which it is noted where pre-activations come near 0.

    Args:
        walk: The walk.
        params: Where it begins.
        x: Its rows.
        lr: Learning rate.
        near: Gets what is seen, as `Way.near` has it.
    """

    def __init__(self, walk: Walk, params: Params, x: Array, lr: float, near: list[Array]) -> None:
        self._walk, self._shape, self._lr, self._near = walk, x.shape, lr, near
        # The norms of the terms of every pre-activation (N, H), about; and by how much a row moves its own
        # ones (N,), with what comes back to them times the rate.
        squares = np.square(x)
        self._norms = np.sqrt(squares @ np.square(params.w1) + np.square(bias(params)))
        self._own = squares.sum(axis=1) + (params.b1 is not None)

    def step(self, number: int, other_side: Sequence[Place]) -> tuple[float, float]:
        """Makes a step, as `Walk.step`."""
        walk, (n, n_in) = self._walk, self._shape
        limit = GROWTH * _COARSEST * math.sqrt(n * number + n_in)
        places = np.nonzero(np.abs(walk.h) <= limit * self._norms)
        if not len(places[0]):
            return walk.step(other_side)
        h, back, own = walk.h[places], walk.back()[places], self._own[places[0]]
        seen = walk.step(other_side)
        here = walk.h[places] - h
        # On the other side the row's own share is in the move, or is not.
        there = here + np.where(h > 0, 1, -1) * self._lr * back * own
        shares = np.abs(h) / np.maximum(self._norms[places], np.finfo(float).tiny)
        of_loss = np.abs(back) * np.maximum(np.abs(here), np.abs(there))
        of_params = self._lr * np.abs(back) * np.sqrt(own)
        self._near.append(np.column_stack([np.full(len(h), number), shares, of_loss, of_params]))
        return seen


class _Across:
    """Leads a walk to the other side at forks.

    Who is there was there from the beginning, by rounding. From the oracle's place it may take some steps.

    Args:
        walk: The walk.
        forks: Of its steps.
    """

    def __init__(self, walk: Walk, forks: Sequence[Fork]) -> None:
        self._walk, self._forks = walk, list(forks)
        self._from: dict[Fork, float] = {}  # the pre-activations at the last step

    def places(self, step: int) -> list[Place]:
        """Where this step is to be that of the other side."""
        for fork in [fork for fork in self._forks if fork.step <= step]:
            h = float(self._walk.h[fork.place])
            before = self._from.setdefault(fork, h)
            self._from[fork] = h
            if (h > 0) != (before > 0) or abs(h) > abs(before):
                self._forks.remove(fork)  # it is across, or does not get there
        return [fork.place for fork in self._forks if fork.step <= step]


def forks(
    start: Params,
    rows: Sequence[tuple[Array, Array]],
    counts: Sequence[int],
    *,
    optimizer: str,
    lr: float,
    roundoff: float,
    roundings: int,
    units: Sequence[int],
) -> list[Fork]:
    """Where other right ways of some units lead off the one that `follow` takes.

    A pre-activation is as good as 0 where it is less than its error: roundings of either sign in each of the
    terms of its sum and of the updates before, which grow as their root, and e-fold twice (see `audit`). Both
    sides are tried for a step: they part for good where one stays there and the other leads away from it.

    Args:
        start: As for `follow`.
        rows: As for `follow`.
        counts: As for `follow`.
        optimizer: As for `follow`.
        lr: As for `follow`.
        roundoff: The unit roundoff of those who follow.
        roundings: How often an update of theirs rounds a weight.
        units: The hidden units.

    Returns:
        For each row of each batch and each unit one fork that parts and one that does not, where there are
        such: first those that part, and of each kind the most doubtful first.
    """
    update, params = Update(optimizer, lr), start
    nearest: dict[tuple[bool, int, Place], tuple[float, int]] = {}
    for step, (batch, (x, y)) in _steps(rows, counts):
        weights, biases = params.w1[:, units], bias(params, units)
        h = x @ weights + biases  # (N, units)
        sizes = np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(weights, axis=0)) + np.abs(biases)
        doubts = np.abs(h) / (GROWTH * roundoff * math.sqrt(roundings * step + x.shape[1]) * sizes)
        _, grads = gradients(params, x, y)
        before, was, params = update.copy(), params, update(params, grads)
        after = x @ params.w1[:, units] + bias(params, units)
        for row, at in np.argwhere(doubts <= 1).tolist():
            place, doubt, on = Place(row, units[at]), float(doubts[row, at]), bool(h[row, at] > 0)
            change = change_of_side(was, x, y, place)
            other = before.only(place.unit)(
                only(was, place.unit), with_change(only(grads, place.unit), x[row], 0, change)
            )
            moved = pre_activation(other, x[row], 0) - h[row, at]
            parts = (after[row, at] > 0) == on and moved != 0 and (moved > 0) != on
            key = parts, batch, place
            nearest[key] = min((doubt, step), nearest.get(key, (math.inf, 0)))
    ranked = sorted((not parts, doubt, step, place) for (parts, _, place), (doubt, step) in nearest.items())
    return [Fork(step, place, not crossed) for crossed, _, step, place in ranked]


def _steps(
    rows: Sequence[tuple[Array, Array]], counts: Sequence[int]
) -> Iterator[tuple[int, tuple[int, tuple[Array, Array]]]]:
    """Every step and its rows, with their number."""
    batches = (batch for batch, count in zip(enumerate(rows), counts, strict=True) for _ in range(count))
    return enumerate(batches)
