"""How the oracle makes the steps of a round: each in full or, of gradient descent on few rows, in their span.

Gradient descent never leaves the span of the rows: the gradient of w1 is ``x.T @ d_h``, so that w1 is, after
any number of steps, where it began less ``lr * x.T`` times the sum of all ``d_h``. All that a step needs of
w1 is ``x @ w1``, and a step moves that by ``lr * (x @ x.T) @ d_h``: of 64 rows of 1000 inputs, a thirtieth of
the products. (That weights in the span of the data need only its inner products is what kernel methods rest
on: Aizerman, Braverman and Rozonoer, "Theoretical foundations of the potential function method in pattern
recognition learning", 1964.) Adam divides every entry by something else, and leaves the span.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from layerlab.reference import Adam, forward, gradients, hidden, loss, predictions, sgd
from layerlab.tier import Params

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerlab.tier import Array


class Place(NamedTuple):
    """A row of the batch and a hidden unit."""

    row: int
    unit: int


class Walk(Protocol):
    """Steps on the same rows, one after the other.

    Attributes:
        h: The pre-activations (N, H) before the next step.
    """

    h: Array

    def step(self, other_side: Sequence[Place] = ()) -> tuple[float, float]:
        """Makes a step.

        Args:
            other_side: Where ReLU's gradient is taken to be that of the other side of 0.

        Returns:
            The loss before it, and the norm of the gradient.
        """

    def back(self) -> Array:
        """What the loss changes with the activations (N, H), before the next step."""

    def params(self) -> Params:
        """Where it has come to."""


class InFull:
    """Every step by the reference's own gradients and updates.

    Args:
        params: Where it begins.
        x: Inputs (N, n_in).
        y: Targets (N, n_out).
        update: The optimizer's step, as it is at the start or as another walk left it.
    """

    def __init__(self, params: Params, x: Array, y: Array, update: Update) -> None:
        self._params, self._x, self._y, self._update = params, x, y, update
        self.h = hidden(params, x)

    def step(self, other_side: Sequence[Place] = ()) -> tuple[float, float]:
        """As `Walk.step`."""
        x, y = self._x, self._y
        value, grads = gradients(self._params, x, y, self.h)
        for place in other_side:
            change = change_of_side(self._params, x, y, place)
            grads = with_change(grads, x[place.row], place.unit, change)
        self._params = self._update(self._params, grads)
        self.h = hidden(self._params, x)
        return value, norm(grads)

    def back(self) -> Array:
        """As `Walk.back`."""
        return _back(self._params, self.h, self._y)

    def params(self) -> Params:
        """As `Walk.params`."""
        return self._params


class InSpan:
    """Gradient descent, of which w1 is put together at the end.

    Args:
        params: Where it begins.
        x: Inputs (N, n_in).
        y: Targets (N, n_out).
        lr: Learning rate.
    """

    def __init__(self, params: Params, x: Array, y: Array, lr: float) -> None:
        self._start, self._x, self._y, self._lr = params, x, y, lr
        self._products = x @ x.T  # (N, N)
        self.h = hidden(params, x)
        self._sum = np.zeros_like(self.h)  # of all d_h
        self._rest = params._replace(w1=np.zeros((0, 0)))  # the parameters that are at hand

    def step(self, other_side: Sequence[Place] = ()) -> tuple[float, float]:
        """As `Walk.step`."""
        rest, lr = self._rest, self._lr
        active = np.maximum(self.h, 0)
        y_pred = active @ rest.w2 + (0.0 if rest.b2 is None else rest.b2)  # (N, n_out)
        d_y = 2 * (y_pred - self._y)
        on = self.h > 0
        for place in other_side:
            on[place] ^= True
        d_h = (d_y @ rest.w2.T) * on  # (N, H)
        moves = self._products @ d_h  # x @ the gradient of w1
        grads = Params(
            rest.w1,
            active.T @ d_y,
            None if rest.b1 is None else d_h.sum(axis=0),
            None if rest.b2 is None else d_y.sum(axis=0),
        )
        self._sum += d_h
        self.h = self.h - lr * (moves + bias(grads))
        self._rest = sgd(rest, grads, lr=lr)
        return loss(y_pred, self._y), math.sqrt(norm(grads) ** 2 + float((d_h * moves).sum()))

    def back(self) -> Array:
        """As `Walk.back`."""
        return _back(self._rest, self.h, self._y)

    def params(self) -> Params:
        """As `Walk.params`."""
        return self._rest._replace(w1=self._start.w1 - self._lr * (self._x.T @ self._sum))


class Update:
    """The optimizer's step.

    Args:
        optimizer: "sgd" or "adam".
        lr: Learning rate.
    """

    def __init__(self, optimizer: str, lr: float) -> None:
        self.lr = lr
        self._adam = Adam(lr) if optimizer == "adam" else None

    def __call__(self, params: Params, grads: Params) -> Params:
        """The parameters after one more step along ``grads``."""
        return sgd(params, grads, lr=self.lr) if self._adam is None else self._adam.update(params, grads)

    def walk(self, params: Params, x: Array, y: Array, count: int) -> Walk:
        """So many further steps on these rows, in the way that has fewer multiplications."""
        (n, n_in), hidden = x.shape, params.w1.shape[1]
        # Two of N x n_in x H a step, and in their place one of N x N x H, for two and one of N x N x n_in at
        # the ends; all of it by N.
        in_full, in_span = 2 * n_in * hidden * count, n * hidden * count + n_in * (n + 2 * hidden)
        if self._adam is None and in_span < in_full:
            return InSpan(params, x, y, self.lr)
        return InFull(params, x, y, self)

    def copy(self) -> Update:
        """One that goes on from here by itself; what Adam remembers is replaced and never written to."""
        twin = copy.copy(self)
        if self._adam is not None:
            twin._adam = copy.copy(self._adam)
            twin._adam.m, twin._adam.v = list(self._adam.m), list(self._adam.v)
        return twin

    def only(self, unit: int) -> Update:
        """One for the parameters of a hidden unit, as `only` gives them."""
        twin = self.copy()
        if twin._adam is not None:
            # without the last biases, which belong to no hidden unit
            for moments in (twin._adam.m, twin._adam.v):
                moments[:] = [p for p in only(Params(*moments), unit) if p is not None] if moments else []
        return twin


def _back(params: Params, h: Array, y: Array) -> Array:
    back: Array = 2 * (predictions(params, h) - y) @ params.w2.T
    return back


def change_of_side(params: Params, x: Array, y: Array, place: Place) -> float:
    """What the gradient by a pre-activation changes by where ReLU is taken to be on the other side of 0."""
    row = slice(place.row, place.row + 1)
    back = float((2 * (forward(params, x[row]) - y[row]))[0] @ params.w2[place.unit])
    return -back if pre_activation(params, x[place.row], place.unit) > 0 else back


def with_change(grads: Params, row: Array, unit: int, change: float) -> Params:
    """The gradients with such a change, of a row (n_in,)."""
    w1, b1 = grads.w1.copy(), None if grads.b1 is None else grads.b1.copy()
    w1[:, unit] += change * row
    if b1 is not None:
        b1[unit] += change
    return grads._replace(w1=w1, b1=b1)


def only(params: Params, unit: int) -> Params:
    """The parameters of one hidden unit: a network that has no other."""
    one = slice(unit, unit + 1)
    return Params(params.w1[:, one], params.w2[one], None if params.b1 is None else params.b1[one])


def pre_activation(params: Params, row: Array, unit: int) -> float:
    """Of a unit for a row (n_in,)."""
    return float(row @ params.w1[:, unit] + (0.0 if params.b1 is None else params.b1[unit]))


def bias(params: Params, units: Sequence[int] | slice = slice(None)) -> Array | float:
    """That of hidden units, or 0."""
    return 0.0 if params.b1 is None else params.b1[units]


def norm(params: Params) -> float:
    """The Euclidean norm of all parameters together."""
    return math.sqrt(sum(float(np.square(p).sum()) for p in params if p is not None))
