"""The problems of the step-locked proof: small networks, each hard in a way of its own.

All are drawn from one seed, in float64. The proof rounds them to the tier's precision and gives the oracle
the rounded numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from layerlab.reference import gradients
from layerlab.tier import Params

if TYPE_CHECKING:
    from layerlab.tier import Array, Recipe

# The first update moves the largest weight by about this share of itself: far more than a rounding of it, so
# that an error of a thousandth of a gradient shows in the parameters; not so much that 50 steps run away.
MOVE = 0.02


@dataclass(frozen=True)
class Problem:
    """First parameters, and the batches that the steps see in turn.

    Attributes:
        name: What it is, for a report.
        params: First parameters.
        batches: Inputs (N, n_in) and targets (N, n_out); after the last the first comes again.
        contiguous: Whether the tier gets plain tensors; otherwise it gets strided views.
    """

    name: str
    params: Params
    batches: tuple[tuple[Array, Array], ...]
    contiguous: bool = True

    def learning_rate(self, recipe: Recipe) -> float:
        """A rate at which a step moves the parameters enough to show a small error, and not too far.

        The updates of an optimizer that is not known are not judged: it gets its own rate, or a smaller one.
        """
        x, y = self.batches[0]
        _, grads = gradients(self.params, x, y)
        largest = max(np.abs(p).max() for p in self.params if p is not None) or 1.0
        size = max(np.abs(g).max() for g in grads if g is not None) or 1.0
        if recipe.optimizer == "adam":
            return float(MOVE * largest * (size + 1e-8) / size)
        # Descent overshoots above 2 / curvature. The curvature of one layer given the other is at most twice
        # the squares of what enters it, times those of the weights behind it.
        act = np.maximum(x @ self.params.w1 + (0 if self.params.b1 is None else self.params.b1), 0)
        curvature = 2 * (np.square(act).sum() + len(x) * (self.params.b2 is not None))
        behind = np.square(self.params.w2).sum()
        curvature += 2 * behind * (np.square(x).sum() + len(x) * (self.params.b1 is not None))
        rate = min(MOVE * largest / size, 1 / curvature if curvature else np.inf)
        return float(rate if recipe.optimizer == "sgd" else min(rate, recipe.lr))


def draw(
    rng: np.random.Generator, n: int, d_in: int, hidden: int, d_out: int, *, bias: bool
) -> tuple[Params, Array, Array]:
    """A random problem: parameters, inputs (n, d_in) and targets (n, d_out), all standard normal."""
    biases = (rng.standard_normal(hidden), rng.standard_normal(d_out)) if bias else (None, None)
    params = Params(rng.standard_normal((d_in, hidden)), rng.standard_normal((hidden, d_out)), *biases)
    return params, rng.standard_normal((n, d_in)), rng.standard_normal((n, d_out))


def full_batch(rng: np.random.Generator, bias: bool) -> list[Problem]:
    """The same batch at every step, in several shapes: N, D_in, H, D_out."""
    problems = []
    # square matrices hide a transposition from a check of shapes; 67, 33, 130 fill no tile of a kernel evenly
    for shape in ((8, 6, 5, 3), (6, 6, 6, 6), (32, 17, 9, 1), (67, 33, 130, 5)):
        params, x, y = draw(rng, *shape, bias=bias)
        problems.append(Problem("x".join(map(str, shape)), params, ((x, y),)))
    return problems


def default_size(rng: np.random.Generator, bias: bool) -> list[Problem]:
    """As large as the default problem of `layerlab run`, on five times as many rows."""
    params, x, y = draw(rng, 320, 1000, 100, 10, bias=bias)
    return [Problem("320x1000x100x10", params, ((x, y),))]


def minibatches(rng: np.random.Generator, bias: bool) -> list[Problem]:
    """Batches of 8, 8 and 7 rows in turn."""
    params, x, y = draw(rng, 23, 6, 5, 3, bias=bias)
    parts = [slice(0, 8), slice(8, 16), slice(16, 23)]
    return [Problem("batches of 8, 8, 7", params, tuple((x[rows], y[rows]) for rows in parts))]


def single_row(rng: np.random.Generator, bias: bool) -> list[Problem]:
    """A batch of one row."""
    params, x, y = draw(rng, 1, 4, 7, 2, bias=bias)
    return [Problem("1x4x7x2", params, ((x, y),))]


def smallest(rng: np.random.Generator, bias: bool) -> list[Problem]:
    """One row, one input, one unit that is alive, one output: 1x1x1x1."""
    params, x, y = draw(rng, 1, 1, 1, 1, bias=bias)
    params = params.map(lambda p: 0.5 + np.abs(p))
    return [Problem("1x1x1x1", params, ((0.5 + np.abs(x), -np.abs(y)),))]


def dead_units(rng: np.random.Generator, bias: bool) -> list[Problem]:
    """Units that are negative for every row: some of them, and all of them."""
    problems = []
    for name, dead in (("3 of 6 units dead", 3), ("all units dead", 6)):
        params, x, y = draw(rng, 8, 5, 6, 3, bias=bias)
        w1 = params.w1.copy()
        w1[:, :dead] = -np.abs(w1[:, :dead])
        b1 = None
        if params.b1 is not None:
            b1 = params.b1.copy()
            b1[:dead] = -np.abs(b1[:dead])
        problems.append(Problem(name, params._replace(w1=w1, b1=b1), ((np.abs(x), y),)))
    return problems


def far_target(rng: np.random.Generator, bias: bool) -> list[Problem]:
    """Targets a thousand times as large as the first predictions."""
    params, x, y = draw(rng, 8, 6, 5, 3, bias=bias)
    return [Problem("targets near 10000", params, ((x, 10_000 + 1_000 * y),))]


def zeros_at_relu(rng: np.random.Generator, bias: bool) -> list[Problem]:
    """Pre-activations of exactly 0, in whatever order they are added up: nothing passes back there.

    Two inputs cancel in the first three units, which know no others; their numbers have few bits, so that no
    rounding is made. They get no gradient, hence stay so at every step. And a network whose first layer is 0.
    """
    params, x, y = draw(rng, 8, 6, 6, 3, bias=bias)
    x[:, 0] = rng.integers(1, 5, 8) * rng.choice([-1, 1], 8)
    x[:, 1] = -x[:, 0]
    w1, b1 = params.w1.copy(), None if params.b1 is None else params.b1.copy()
    w1[:, :3] = 0
    w1[:2, :3] = rng.integers(1, 5, 3) * rng.choice([-1, 1], 3)
    if b1 is not None:
        b1[:3] = 0
    flat = params._replace(w1=np.zeros_like(w1), b1=None if b1 is None else np.zeros_like(b1))
    return [
        Problem("3 of 6 units at 0", params._replace(w1=w1, b1=b1), ((x, y),)),
        Problem("first layer 0", flat, ((x, y),)),
    ]


def small_gradients(rng: np.random.Generator, bias: bool) -> list[Problem]:
    """Gradients below Adam's epsilon, where it no longer makes all gradients alike."""
    params, x, y = draw(rng, 8, 6, 5, 3, bias=bias)
    params = params.map(lambda p: p * 1e-4)
    if params.b2 is not None:
        params = params._replace(b2=params.b2 * 1e-4)
    problems = [Problem("gradients near 1e-10", params, ((x, 1e-8 * y),))]
    if params.b2 is not None:
        # The last bias gets the largest gradient: for it to be small all else must be smaller.
        tiny, x, y = draw(rng, 8, 6, 5, 3, bias=bias)
        problems.append(Problem("numbers near 1e-9", tiny.map(lambda p: p * 1e-9), ((x, 1e-9 * y),)))
    return problems


def strided(rng: np.random.Generator, bias: bool) -> list[Problem]:
    """Inputs and targets that are not contiguous: every second row of a transposed table."""
    params, x, y = draw(rng, 8, 6, 5, 3, bias=bias)
    return [Problem("strided 8x6x5x3", params, ((x, y),), contiguous=False)]
