"""How far a correct step may be from the exact one: the standard model of rounding, carried through the step.

A product of matrices with inner size n, computed in whatever order, is off by at most ``g(n) * |A| @ |B|``
with ``g(n) = n u / (1 - n u)`` and u the unit roundoff (Higham, "Accuracy and Stability of Numerical
Algorithms", 2nd ed., 3.5). Errors of the operands add their own products. Where a pre-activation lies within
its error of 0, ReLU's mask may fall either way, and the whole gradient of that unit is in doubt.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from layerlab.tier import Params


def gamma(n: int, u: float) -> float:
    """The bound on the relative error of n roundings."""
    return n * u / (1 - n * u)


def step_bounds(params: Params, x: Any, y: Any, u: float) -> tuple[float, Params]:
    """Bounds on the errors of the loss and of every gradient of one step.

    Args:
        params: The parameters, float64, exactly those that the tier has.
        x: Inputs, shape (N, n_in).
        y: Targets, shape (N, n_out).
        u: Unit roundoff of the tier's precision.
    """
    n, d_in = x.shape
    hidden, d_out = params.w2.shape
    a = np.abs
    b1 = 0.0 if params.b1 is None else params.b1
    b2 = 0.0 if params.b2 is None else params.b2

    h = x @ params.w1 + b1  # (N, H)
    e_h = gamma(d_in + 1, u) * (a(x) @ a(params.w1) + a(b1))
    act = np.maximum(h, 0)
    e_act = np.where(h > -e_h, e_h, 0)
    y_pred = act @ params.w2 + b2  # (N, D_out)
    e_y = e_act @ a(params.w2) + gamma(hidden + 1, u) * ((act + e_act) @ a(params.w2) + a(b2))
    diff = y_pred - y
    e_diff = e_y + u * (a(diff) + e_y)
    e_loss = (2 * a(diff) * e_diff + e_diff**2 + gamma(n * d_out + 1, u) * (a(diff) + e_diff) ** 2).sum()

    g_y, e_gy = 2 * diff, 2 * e_diff
    size_gy = a(g_y) + e_gy
    g_h = (g_y @ params.w2.T) * (h > 0)
    e_gh = e_gy @ a(params.w2.T) + gamma(d_out, u) * (size_gy @ a(params.w2.T))
    doubtful = a(h) <= e_h
    e_gh = np.where(doubtful, size_gy @ a(params.w2.T) + e_gh, np.where(h > 0, e_gh, 0))
    size_gh = a(g_h) + e_gh
    # One rounding more than the sum has terms: for the factor 2, wherever a tier puts it.
    return float(e_loss), Params(
        w1=a(x).T @ e_gh + gamma(n + 1, u) * (a(x).T @ size_gh),
        w2=e_act.T @ size_gy + act.T @ e_gy + gamma(n + 1, u) * ((act + e_act).T @ size_gy),
        b1=None if params.b1 is None else e_gh.sum(axis=0) + gamma(n + 1, u) * size_gh.sum(axis=0),
        b2=None if params.b2 is None else e_gy.sum(axis=0) + gamma(n + 1, u) * size_gy.sum(axis=0),
    )
