"""How far a correct step may be from the exact one: the standard model of rounding, carried through the step.

A product of matrices with inner size n, added up in whatever order, fused multiply-adds or not, is off by at
most ``g(n) * |A| @ |B|`` with ``g(n) = n u / (1 - n u)`` and u the unit roundoff (Higham, "Accuracy and
Stability of Numerical Algorithms", 2nd ed., 3.5). Errors of the operands add products of their own. So every
bound here comes from three things only: the unit roundoff of the precision, the number of terms of each sum,
and the sizes of the terms at the point where the step is taken. There is no constant to tune.

Where a pre-activation lies within its error of 0, ReLU's mask may fall either way, and what the unit passes
back is in doubt by its whole size. Where it is computed without any rounding there is no doubt, and 0 is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from layerlab.tier import Params

if TYPE_CHECKING:
    from collections.abc import Callable

    from layerlab.reference import Adam
    from layerlab.tier import Array, Precision


@dataclass(frozen=True)
class Roundoff:
    """The rounding of a precision.

    Attributes:
        store: Unit roundoff of a stored result.
        sums: Unit roundoff within a sum of products.
        tiny: The smallest normal number: what is below it may be lost.
    """

    store: float
    sums: float
    tiny: float

    @classmethod
    def of(cls, precision: Precision) -> Roundoff:
        """The rounding of a tier in a precision and of the oracle beside it, which is not exact either."""
        oracle = 2.0**-53
        if precision == "64-true":
            return cls(2 * oracle, 2 * oracle, float(np.finfo(np.float64).tiny))
        tiny = float(np.finfo(np.float32).tiny)
        single = 2.0**-24 + oracle
        # Autocast: operands and results of a product have 8 bits, the sum is kept in 24.
        return cls(single if precision == "32-true" else 2.0**-8, single, tiny)

    def growth(self, n: int) -> float:
        """The relative error of a sum of n rounded products: operands and result are stored, n sums made."""
        return gamma(n, self.sums) + (0.0 if self.store == self.sums else gamma(4, self.store))


@dataclass(frozen=True)
class Sound:
    """What one step computes, exactly, and how far a correct tier may be from it.

    Attributes:
        y_pred: Bound on the predictions, shape (N, n_out).
        loss: Bound on the loss.
        gradients: Bounds on the gradients.
        sizes: Of every gradient the sum of the absolute values of its terms, one a row.
    """

    y_pred: Array
    loss: float
    gradients: Params
    sizes: Params


def gamma(n: int, u: float) -> float:
    """The bound on the relative error of n roundings of unit roundoff u."""
    if n * u >= 1:
        raise ValueError(f"{n} roundings of {u} have no bound")
    return n * u / (1 - n * u)


def bound_forward(params: Params, x: Array, r: Roundoff) -> tuple[Array, Array, Array, Array]:
    """Bounds on the errors of the forward pass.

    Args:
        params: The parameters, float64, exactly those that the tier has.
        x: Inputs, shape (N, n_in).
        r: The rounding of the tier's precision.

    Returns:
        Pre-activations (N, H) and their bound, predictions (N, n_out) and theirs.
    """
    d_in, hidden = params.w1.shape
    b1, b2 = (np.zeros(1) if b is None else b for b in (params.b1, params.b2))
    h = x @ params.w1 + b1  # (N, H)
    size_h = np.abs(x) @ np.abs(params.w1) + np.abs(b1)
    e_h = r.growth(d_in + 1) * size_h + d_in * r.tiny * (size_h > 0)
    e_h[_exact(size_h, x, params.w1, b1, r)] = 0
    act = np.maximum(h, 0)
    e_act = np.where(h > -e_h, e_h, 0)
    y_pred = act @ params.w2 + b2  # (N, D_out)
    w2 = np.abs(params.w2)
    e_y = e_act @ w2 + r.growth(hidden + 1) * ((act + e_act) @ w2 + np.abs(b2)) + hidden * r.tiny
    return h, e_h, y_pred, e_y


def bound_step(params: Params, x: Array, y: Array, r: Roundoff) -> Sound:
    """Bounds on the errors of the predictions, the loss and every gradient of one step.

    Args:
        params: The parameters, float64, exactly those that the tier has.
        x: Inputs, shape (N, n_in).
        y: Targets, shape (N, n_out).
        r: The rounding of the tier's precision.
    """
    n, d_out = y.shape
    h, e_h, y_pred, e_y = bound_forward(params, x, r)
    act, e_act = np.maximum(h, 0), np.where(h > -e_h, e_h, 0)
    size_x, w2 = np.abs(x), np.abs(params.w2)
    diff = np.abs(y_pred - y)
    e_diff = e_y + r.store * (diff + e_y)
    squares = (diff + e_diff) ** 2
    e_loss = (2 * diff * e_diff + e_diff**2 + r.growth(n * d_out + 1) * squares).sum() + n * d_out * r.tiny

    e_gy = 2 * e_diff
    size_gy = 2 * diff + e_gy  # (N, D_out)
    back = size_gy @ w2.T  # (N, H): the most that a unit passes back
    g_h = ((2 * (y_pred - y)) @ params.w2.T) * (h > 0)
    # One rounding more than the sum has terms: for the factor 2, wherever a tier puts it.
    e_gh = e_gy @ w2.T + r.growth(d_out + 1) * back + d_out * r.tiny
    doubtful = (np.abs(h) <= e_h) & (e_h > 0)
    e_gh = np.where(doubtful, back + e_gh, np.where(h > 0, e_gh, 0))
    size_gh = np.abs(g_h) + e_gh
    sizes = Params(
        w1=size_x.T @ size_gh,
        w2=(act + e_act).T @ size_gy,
        b1=None if params.b1 is None else size_gh.sum(axis=0),
        b2=None if params.b2 is None else size_gy.sum(axis=0),
    )
    rounding = sizes.map(lambda size: r.growth(n + 1) * size + n * r.tiny * (size > 0))
    carried = Params(
        w1=size_x.T @ e_gh,
        w2=e_act.T @ size_gy + act.T @ e_gy,
        b1=None if params.b1 is None else e_gh.sum(axis=0),
        b2=None if params.b2 is None else e_gy.sum(axis=0),
    )
    return Sound(
        y_pred=e_y,
        loss=float(e_loss),
        gradients=zip_params(np.add, carried, rounding),
        sizes=sizes,
    )


def bound_sgd(params: Params, sizes: Params, errors: Params, *, lr: float, terms: int, r: Roundoff) -> Params:
    """Bounds on the parameters after one step of gradient descent.

    Args:
        params: Before the step.
        sizes: Of every gradient its size, or that of the terms it is the sum of.
        errors: Bounds on the errors of the gradients.
        lr: Learning rate; it may be stored in the tier's precision.
        terms: How many terms a step may add to a parameter one by one, as ``addmm`` does; 1: the gradient.
        r: The rounding of the tier's precision.
    """

    def bound(p: Array, size: Array, e: Array) -> Array:
        # the rate and the product are rounded, in the type of the gradients, and every sum
        moved = lr * (size + e)
        return lr * e + r.growth(2 + terms) * moved + gamma(terms, r.sums) * np.abs(p) + terms * r.tiny

    return zip_params(bound, params, sizes, errors)


class AdamBound:
    """Adam in float64, and how far a correct one may be from it: its means carry errors from step to step.

    A tier may keep the decays in its own precision. Then ``1 - beta`` is off by ``u beta / (1 - beta)`` of
    itself, and so is ``1 - beta**t``: in single precision a few parts in 100,000 for ``beta2`` at first.

    Args:
        adam: The oracle's Adam, at its start.
        r: The rounding of the tier's precision.
    """

    def __init__(self, adam: Adam, r: Roundoff) -> None:
        self.adam, self.r = adam, r
        self._e_m: list[Array] = []
        self._e_v: list[Array] = []

    def update(self, params: Params, grads: Params, errors: Params) -> tuple[Params, Params]:
        """The parameters after one more step along ``grads``, and the bounds on their errors.

        Args:
            params: Before the step.
            grads: The gradients.
            errors: Bounds on the errors of the gradients; 0 where they are the tier's own.
        """
        present = [p for p in params if p is not None]
        if not self._e_m:
            self._e_m, self._e_v = ([np.zeros_like(p) for p in present] for _ in range(2))
        # as they were: `update` writes into the lists
        before = [np.abs(m) for m in self.adam.m] or self._e_m, list(self.adam.v) or self._e_v
        after = self.adam.update(params, grads)
        pairs = zip(grads, errors, strict=True)
        for i, (g, e) in enumerate((g, e) for g, e in pairs if g is not None and e is not None):
            self._e_m[i] = self._mean(self.adam.beta1, before[0][i], self._e_m[i], np.abs(g), e)
            square, e_square = g * g, 2 * np.abs(g) * e + e * e
            e_square = e_square + self.r.growth(1) * (square + e_square)
            self._e_v[i] = self._mean(self.adam.beta2, before[1][i], self._e_v[i], square, e_square)
        bounds = iter([self._move(i, p) for i, p in enumerate(present)])
        return after, params.map(lambda _: next(bounds))

    def _mean(self, beta: float, mean: Array, e_mean: Array, new: Array, e_new: Array) -> Array:
        """The error of ``beta * mean + (1 - beta) * new``, also when written as an interpolation."""
        u = self.r.sums
        weight = self.r.growth(4) + u * beta / (1 - beta)
        old = beta * e_mean + gamma(4, u) * beta * (mean + e_mean)
        error: Array = old + (1 - beta) * (e_new + weight * (new + e_new + mean + e_mean)) + 4 * self.r.tiny
        return error

    def _move(self, i: int, p: Array) -> Array:
        """The error of ``p - lr * m_hat / (sqrt(v_hat) + eps)``: the ends of the intervals, and roundings."""
        a, u = self.adam, self.r.sums
        (low1, high1), (low2, high2) = (self._correction(beta) for beta in (a.beta1, a.beta2))
        m, v = a.m[i], a.v[i]
        root_low = np.sqrt(np.maximum(v - self._e_v[i], 0) / high2)
        root_high = np.sqrt((v + self._e_v[i]) / low2)
        c1, c2 = 1 - a.beta1**a.t, 1 - a.beta2**a.t
        exact = m / c1 / (np.sqrt(v / c2) + a.eps)
        ends = [
            side / c / (root + a.eps)
            for side in (m - self._e_m[i], m + self._e_m[i])
            for c in (low1, high1)
            for root in (root_low, root_high)
        ]
        largest = np.abs(ends).max(axis=0)
        error = a.lr * (np.abs(ends - exact).max(axis=0) + gamma(10, u) * largest)
        bound: Array = error + gamma(1, u) * (np.abs(p) + a.lr * largest) + self.r.tiny
        return bound

    def _correction(self, beta: float) -> tuple[float, float]:
        """Between what ``1 - beta**t`` may be: the power of a rounded beta, rounded."""
        t, u = self.adam.t, self.r.sums
        power = beta**t
        error = gamma(t + 3, u) * power + u * (1 - power)
        return 1 - power - error, 1 - power + error


def zip_params(function: Callable[..., Array], *several: Params) -> Params:
    """Applies a function to every parameter that there is of several `Params`."""
    return Params(*(None if ps[0] is None else function(*ps) for ps in zip(*several, strict=True)))  # type: ignore[arg-type]


def _exact(size: Array, x: Array, w: Array, b: Array, r: Roundoff) -> Array:
    """Which entries of ``x @ w + b`` any order of operations gives without rounding.

    All that is added is a whole multiple of the product of the lowest bits of a row and a column. If the sum
    of absolute values is below 1/u of these units, every partial sum is a number that the precision holds.
    """
    unit = _lowest_bit(x).min(axis=1)[:, None] * _lowest_bit(w).min(axis=0)  # (N, H)
    unit = np.minimum(unit, _lowest_bit(b))
    with np.errstate(invalid="ignore"):  # nothing at all is exact: 0 times infinity
        exact: Array = (size == 0) | (size * r.store < unit / 2)
    return exact


def _lowest_bit(a: Array) -> Array:
    """The value of the lowest bit that is set in each entry; infinite for 0, a multiple of anything."""
    mantissa, exponent = np.frexp(a)
    whole = np.abs(mantissa * 2.0**53).astype(np.int64)
    with np.errstate(over="ignore"):
        bit = np.ldexp((whole & -whole).astype(np.float64), exponent - 53)
    return np.where(whole == 0, np.inf, bit)
